//! What is wrong with a document, where, and what to do about it.
//!
//! Admission reports every problem of an input at once as [`Problems`]; people see them in rustc's look
//! ([`Problems::render`]), statuses carry one line ([`Problem::line`]), programs read JSON (serde). Codes are stable:
//! scripts may rely on them. Lines and columns count from 1, columns in characters. Text of the input that is quoted
//! in a message is shortened and freed of control characters, so that a hostile document cannot paint a terminal.

use std::fmt;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::{Deserialize, Serialize};

use crate::yaml::TextSpan;

/// Problems that are listed; what is beyond is counted in [`Problems::more`].
pub const MAX_PROBLEMS: usize = 100;

macro_rules! codes {
    ($($name:ident $level:ident $text:literal)*) => {
        /// The stable name of a kind of problem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Code { $(#[doc = $text] $name,)* }

        impl Code {
            /// Every code, in the order of the checks that give them.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The code as it is printed: `UnknownKey`.
            pub const fn name(self) -> &'static str {
                match self { $(Code::$name => stringify!($name),)* }
            }

            /// One sentence about the rule that is broken.
            pub const fn describe(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// Which of the checks gives this code.
            pub const fn level(self) -> CodeLevel {
                match self { $(Code::$name => CodeLevel::$level,)* }
            }
        }
    };
}

/// The check that gives a code: the text, the published JSON Schema, or what goes beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeLevel {
    /// The text is not acceptable YAML or JSON.
    Text,
    /// The published JSON Schema does not admit the document.
    Schema,
    /// The schema admits it, a rule beyond the schema does not.
    Semantic,
    /// The document is fine by itself, but not in its place: beside others, or under its key of the store.
    Context,
}

codes! {
    NotText Text "The input is not UTF-8 text."
    TooLarge Text "The input, or one document of it, is larger than the limit."
    Syntax Text "The text is not valid YAML (JSON is a part of YAML)."
    TooDeep Text "Values are nested deeper than the limit."
    TooManyValues Text "A document holds more values than the limit, aliases expanded."
    BadTag Text "A YAML tag is unknown, or does not fit its value."
    BadAlias Text "A YAML alias names no anchor, or lies inside the value it names."
    BadKey Text "A key of a mapping is not a string."
    MergeKey Text "YAML's merge key `<<` is not supported."
    DuplicateKey Text "A key occurs twice in one mapping."
    BadNumber Text "A number cannot be kept without loss."
    NoDocument Text "The input holds no document."
    UnknownKind Schema "The document's kind is not known."
    UnknownVersion Schema "The document's apiVersion is not known for its kind."
    UnknownKey Schema "A key is not known at its place."
    MissingKey Schema "A required key is missing."
    WrongType Schema "A value is of the wrong type."
    BadValue Schema "A value is not among the allowed ones, or is not written as it must be."
    OutOfRange Schema "A number is too small or too large."
    BadLength Schema "A text, list or mapping is too short or too long."
    BadImage Semantic "The image reference cannot be read."
    BadQuantity Semantic "A size, CPU quantity or duration has the right form but no meaning, or is beyond its limit."
    BadAddress Semantic "An address is neither IPv4 nor IPv6."
    AmbiguousText Semantic "A number or boolean is used as a text, and is not written the way it would be kept."
    DecimalForWhole Semantic "A whole number is written as a decimal."
    ControlCharacter Semantic "A text contains NUL, which neither the engine nor the kernel can take."
    EnvName Semantic "The name of an environment variable is empty or contains `=`."
    GlobalOption Semantic "A service with `mode: global` runs one instance per node: `replicas`, and what chooses among nodes, has no meaning."
    ExclusiveOption Semantic "A service with `exclusive: true` has numbered slots, and none of them is replaced by time alone."
    PortNameTaken Semantic "Two ports of one container have the same name."
    PortTaken Semantic "One container declares the same port, or asks for the same host port, twice."
    PortWithoutNetwork Semantic "Ports cannot be published by a container that has no bridge network of its own."
    HostAddressWithoutPort Semantic "A host address is given for a port that is not published."
    PublishForm Semantic "A port is to be open everywhere, or to tell who connects, where that cannot be."
    MountTargetTaken Semantic "Two mounts have the same target."
    MountSource Semantic "A mount lacks its source, or has one that its type cannot have."
    FilePath Semantic "A file's path in the container is not clean, or its owner has no such number."
    FileContent Semantic "A file has not exactly one content, or one that cannot be read."
    SecretForm Semantic "A secret is asked for as a variable and as a file at once, or as a variable that is there already."
    Registry Semantic "A registry, a user or an image path is not one; or an account is there twice."
    CommandPlace Semantic "A named command does not say exactly where it runs, or asks for what that place does not have."
    CommandParameter Semantic "A parameter of a named command arrives nowhere, or where a shell reads it, or has no possible value."
    BadNetwork Semantic "A network is not written as its first address and the length of its prefix."
    NetworkRule Semantic "A rule of a network policy names nobody, or counts for nothing."
    VirtualAddress Semantic "A virtual address is none that a host can have, or its device has no such name."
    MountOption Semantic "A mount has an option that its type cannot have."
    RequestAboveLimit Semantic "A request is larger than the limit of the same resource."
    BelowMinimum Semantic "A quantity is below what the engine takes."
    SwapWithoutMemory Semantic "A swap limit needs a memory limit that is not larger."
    UlimitOrder Semantic "A soft limit is above its hard limit."
    ProbeAction Semantic "A health check needs exactly one of `http`, `tcp` and `exec`."
    ProbeTiming Semantic "A time of a health check is outside its limits."
    DurationLimit Semantic "A duration is longer than its limit."
    ProbeHeader Semantic "A header of a health check cannot be sent."
    DurationOrder Semantic "A duration is zero, or above another one that bounds it."
    ExpressionValues Semantic "A label expression's values do not fit its operator."
    DuplicateEntry Semantic "Something that can be said once is said twice."
    TolerationShape Semantic "A toleration's key and value do not fit its operator."
    StopSignal Semantic "A signal is not one that Linux knows."
    SysctlName Semantic "A kernel parameter is not one that a container can have for itself."
    SecurityOption Semantic "A security option is empty."
    HostName Semantic "A name of a host or search domain is not written as it must be."
    ReservedLabel Semantic "Labels that begin with `reeve.` are set by Reeve."
    LabelName Semantic "A label's or annotation's key is not written as it must be."
    LabelSize Semantic "A label or annotation is too large."
    NetworkOption Semantic "An option of the container's own network is set, but it has none."
    ShmWithoutIpc Semantic "A size of `/dev/shm` is given, but the container has none of its own."
    CapabilityTwice Semantic "A capability is both added and dropped."
    CapabilityName Semantic "A capability is not one that Linux knows."
    CpuSetOrder Semantic "A range of CPUs or memory nodes ends before it begins."
    DuplicateDocument Context "Two documents of the input are the same resource."
    NameTaken Context "Two workloads of one namespace have the same name."
    Leased Context "A resource in the store must not hang on a lease: it would vanish with it."
    KeyMismatch Context "The key in the store and the document under it disagree."
    OneDocument Context "A value in the store holds exactly one document."
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Another place that belongs to a problem, such as the first of two equal keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Related {
    /// The file, where the input has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is there.
    pub text: String,
    #[serde(skip)]
    source: usize,
    #[serde(skip)]
    span: TextSpan,
}

/// One problem of one document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Problem {
    /// The file, where the input has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line of the first character, from 1.
    pub line: usize,
    /// Column of the first character, in characters, from 1.
    pub column: usize,
    /// Line just after the last character, from 1.
    pub end_line: usize,
    /// Column just after the last character, in characters, from 1.
    pub end_column: usize,
    /// Where in the document: `spec.container.ports[0].hostPort`; empty for the whole.
    pub path: String,
    /// Stable code.
    pub code: Code,
    /// What is wrong, as a fragment without a full stop.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Other places that belong to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Related>,
    #[serde(skip)]
    source: usize,
    #[serde(skip)]
    span: TextSpan,
}

impl Problem {
    /// One line for statuses and logs: `line 4, column 7: spec.replicas: found the text "two"; write a whole number`.
    pub fn line(&self) -> String {
        let mut line = format!("line {}, column {}: ", self.line, self.column);
        if !self.path.is_empty() {
            line.push_str(&self.path);
            line.push_str(": ");
        }
        line.push_str(&self.message);
        if let Some(remedy) = &self.remedy {
            line.push_str("; ");
            line.push_str(remedy);
        }
        line
    }

    /// The bytes of the input that the problem is about.
    pub fn span(&self) -> TextSpan {
        self.span
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", clean(file))?;
        }
        f.write_str(&self.line())
    }
}

/// All problems of an input, sorted by place, with the text they are about.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problems {
    /// The first [`MAX_PROBLEMS`], by file and place; never empty.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
    #[serde(skip)]
    sources: Vec<Source>,
}

/// How [`Problems::render`] paints.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// With ANSI colours; colour never carries meaning alone.
    pub color: bool,
    /// Columns of the terminal; 80 when unknown. Less than 40 counts as 40.
    pub width: usize,
}

impl Default for Look {
    fn default() -> Self {
        Look {
            color: false,
            width: 80,
        }
    }
}

impl Problems {
    /// `findings` carry the number of the source they are about.
    pub(crate) fn new(sources: Vec<Source>, mut findings: Vec<(usize, Finding)>) -> Self {
        findings.sort_by(|(a_source, a), (b_source, b)| {
            (a_source, a.span.start, a.code, &a.path, &a.message).cmp(&(
                b_source,
                b.span.start,
                b.code,
                &b.path,
                &b.message,
            ))
        });
        findings.dedup();
        let more = findings.len().saturating_sub(MAX_PROBLEMS);
        findings.truncate(MAX_PROBLEMS);
        let lines: Vec<LineIndex> = sources.iter().map(|source| LineIndex::new(&source.text)).collect();
        let problems = findings
            .into_iter()
            .map(|(source, finding)| {
                let span = finding.span.within(&sources[source].text);
                let (line, column) = lines[source].place(&sources[source].text, span.start);
                let (end_line, end_column) = lines[source].place(&sources[source].text, span.end);
                let related = finding
                    .related
                    .into_iter()
                    .map(|other| {
                        let source = other.source.unwrap_or(source);
                        let span = other.span.within(&sources[source].text);
                        let (line, column) = lines[source].place(&sources[source].text, span.start);
                        Related {
                            file: sources[source].file.clone(),
                            line,
                            column,
                            text: other.text,
                            source,
                            span,
                        }
                    })
                    .collect();
                Problem {
                    file: sources[source].file.clone(),
                    line,
                    column,
                    end_line,
                    end_column,
                    path: finding.path,
                    code: finding.code,
                    message: finding.message,
                    remedy: finding.remedy,
                    related,
                    source,
                    span,
                }
            })
            .collect();
        Problems {
            problems,
            more,
            sources,
        }
    }

    /// How many problems there are, listed or not.
    pub fn count(&self) -> usize {
        self.problems.len() + self.more
    }

    /// The first problem on one line, and how many more there are: for statuses and conditions.
    pub fn summary(&self) -> String {
        let Some(first) = self.problems.first() else {
            return "no problem".to_owned();
        };
        match self.count() - 1 {
            0 => first.line(),
            1 => format!("{} (and 1 more problem)", first.line()),
            more => format!("{} (and {more} more problems)", first.line()),
        }
    }

    /// All problems in rustc's look, each followed by an empty line, and a last line that counts them.
    pub fn render(&self, look: Look) -> String {
        let width = look.width.max(40);
        let renderer = if look.color {
            Renderer::styled()
        } else {
            Renderer::plain()
        }
        .term_width(width);
        let mut out = String::new();
        for problem in &self.problems {
            out.push_str(&self.render_one(problem, &renderer, width));
            out.push_str("\n\n");
        }
        let files: std::collections::BTreeSet<usize> = self.problems.iter().map(|problem| problem.source).collect();
        let count = match self.count() {
            1 => "1 problem".to_owned(),
            count => format!("{count} problems"),
        };
        let shown = if self.more > 0 {
            format!(", the first {} shown", self.problems.len())
        } else {
            String::new()
        };
        let place = match (
            files.len(),
            self.problems.first().and_then(|problem| problem.file.as_deref()),
        ) {
            (1, Some(file)) => format!(" in {}", clean(file)),
            (1, None) => String::new(),
            (files, _) => format!(" in {files} files"),
        };
        out.push_str(&format!("{count}{place}{shown}\n"));
        out
    }

    fn render_one(&self, problem: &Problem, renderer: &Renderer, width: usize) -> String {
        let mut title = String::new();
        if !problem.path.is_empty() {
            title.push_str(&clean(&problem.path));
            title.push_str(": ");
        }
        title.push_str(&clean(&problem.message));
        let code = problem.code.name();
        // "error[Code]: " stands before the first line; the next ones are indented by "error: " or more.
        let title = wrap(&title, width.saturating_sub(code.len() + 9).max(24));
        let mut group = Level::ERROR.primary_title(title).id(code);
        let mut elements: Vec<annotate_snippets::Element<'_>> = Vec::new();
        let same: Vec<&Related> = problem
            .related
            .iter()
            .filter(|other| other.source == problem.source)
            .collect();
        elements.extend(self.excerpt(problem, &same));
        for other in problem.related.iter().filter(|other| other.source != problem.source) {
            elements.push(
                Origin::path(self.name(other.source))
                    .line(other.line)
                    .char_column(other.column)
                    .into(),
            );
            elements.push(
                Level::NOTE
                    .message(wrap(&clean(&other.text), width.saturating_sub(12)))
                    .into(),
            );
        }
        if let Some(remedy) = &problem.remedy {
            elements.push(
                Level::HELP
                    .message(wrap(&clean(remedy), width.saturating_sub(12)))
                    .into(),
            );
        }
        let group: Group<'_> = {
            group = group.id(code);
            group.elements(elements)
        };
        renderer.render(&[group])
    }

    /// The lines of the input around a problem; only the place where these are too long to show.
    fn excerpt<'a>(&'a self, problem: &'a Problem, same: &[&'a Related]) -> Vec<annotate_snippets::Element<'a>> {
        let text = &self.sources[problem.source].text;
        let first = same
            .iter()
            .map(|other| other.span.start)
            .chain([problem.span.start])
            .min()
            .unwrap_or(0);
        let last = same
            .iter()
            .map(|other| other.span.end)
            .chain([problem.span.end])
            .max()
            .unwrap_or(0);
        let from = text[..first].rfind('\n').map_or(0, |at| at + 1);
        let to = text[last..].find('\n').map_or(text.len(), |at| last + at);
        let longest = text[from..to].split('\n').map(str::len).max().unwrap_or(0);
        if to - from > MAX_EXCERPT || longest > MAX_EXCERPT_LINE {
            let mut elements = vec![
                Origin::path(self.name(problem.source))
                    .line(problem.line)
                    .char_column(problem.column)
                    .into(),
            ];
            for other in same {
                elements.push(
                    Level::NOTE
                        .message(format!(
                            "line {}, column {}: {}",
                            other.line,
                            other.column,
                            clean(&other.text)
                        ))
                        .into(),
                );
            }
            return elements;
        }
        let line = 1 + text[..from].matches('\n').count();
        let local = |span: TextSpan| (span.start - from)..(span.end - from).max(span.start - from);
        let mut snippet = Snippet::source(&text[from..to])
            .line_start(line)
            .path(self.name(problem.source))
            .annotation(AnnotationKind::Primary.span(local(problem.span)));
        for other in same {
            snippet = snippet.annotation(
                AnnotationKind::Context
                    .span(local(other.span))
                    .label(clean(&other.text)),
            );
        }
        vec![snippet.into()]
    }

    fn name(&self, source: usize) -> String {
        self.sources[source]
            .file
            .as_deref()
            .map_or_else(|| "input".to_owned(), clean)
    }
}

impl fmt::Display for Problems {
    /// One line per problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more problems", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Bytes of input that one excerpt may show.
const MAX_EXCERPT: usize = 16 * 1024;
/// Bytes of a line above which the excerpt is left out.
const MAX_EXCERPT_LINE: usize = 2_000;

/// A text with its name, kept to show excerpts.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) file: Option<String>,
    pub(crate) text: String,
}

/// A problem before lines are counted: what the checks produce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) span: TextSpan,
    pub(crate) path: String,
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) remedy: Option<String>,
    pub(crate) related: Vec<Elsewhere>,
}

/// Another place of a [`Finding`]; `source` is absent when it is in the same text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    pub(crate) source: Option<usize>,
    pub(crate) span: TextSpan,
    pub(crate) text: String,
}

impl Finding {
    pub(crate) fn new(span: TextSpan, path: impl Into<String>, code: Code, message: impl Into<String>) -> Self {
        Finding {
            span,
            path: path.into(),
            code,
            message: message.into(),
            remedy: None,
            related: Vec::new(),
        }
    }

    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    pub(crate) fn also(mut self, span: TextSpan, text: impl Into<String>) -> Self {
        self.related.push(Elsewhere {
            source: None,
            span,
            text: text.into(),
        });
        self
    }
}

/// Byte offsets of the lines of a text, so that places are found by binary search.
struct LineIndex {
    starts: Vec<usize>,
}

impl LineIndex {
    fn new(text: &str) -> Self {
        let mut starts = vec![0];
        starts.extend(
            text.bytes()
                .enumerate()
                .filter(|(_, byte)| *byte == b'\n')
                .map(|(at, _)| at + 1),
        );
        LineIndex { starts }
    }

    /// Line and column (in characters, a byte order mark not counted), both from 1.
    fn place(&self, text: &str, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= at);
        let start = self.starts[line - 1];
        let before = text[start..at].trim_start_matches('\u{feff}');
        (line, before.chars().count() + 1)
    }
}

/// Text of the input as it may be shown: one line, control characters and overlong parts replaced.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => '\n',
            c if c.is_control() || is_bidi(c) => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Characters that reorder the text around them on a terminal.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Every rule beyond the published schema, with its code: what an editor or another validator cannot tell.
pub const SEMANTIC_RULES: &[(Code, &str)] = &{
    let mut rules = [(Code::NotText, ""); count(CodeLevel::Semantic) + count(CodeLevel::Context)];
    let (mut from, mut to) = (0, 0);
    while from < Code::ALL.len() {
        let code = Code::ALL[from];
        if matches!(code.level(), CodeLevel::Semantic | CodeLevel::Context) {
            rules[to] = (code, code.describe());
            to += 1;
        }
        from += 1;
    }
    rules
};

const fn count(level: CodeLevel) -> usize {
    let (mut at, mut found) = (0, 0);
    while at < Code::ALL.len() {
        if Code::ALL[at].level() as u8 == level as u8 {
            found += 1;
        }
        at += 1;
    }
    found
}

/// A piece of input as it is quoted in messages: at most 40 characters, on one line.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::from("`");
    for (at, c) in text.chars().enumerate() {
        if at == 40 {
            out.push_str("...");
            break;
        }
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\0' => out.push_str("\\0"),
            c if c.is_control() || is_bidi(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out.push('`');
    out
}

/// Breaks a text at spaces so that no line is longer than `width` characters, where that is possible.
fn wrap(text: &str, width: usize) -> String {
    let mut out = String::new();
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        let mut used = 0;
        for word in line.split(' ') {
            let length = word.chars().count();
            if used > 0 && used + 1 + length > width {
                out.push('\n');
                used = 0;
            } else if used > 0 {
                out.push(' ');
                used += 1;
            }
            out.push_str(word);
            used += length;
        }
    }
    out
}

/// The closest of `candidates` to what was written, when it is close enough to be what was meant.
pub(crate) fn closest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if written.chars().count() > 64 {
        return None;
    }
    // `memory_swap` and `memory-swap` are `memorySwap`.
    let plain = |word: &str| word.to_lowercase().replace(['_', '-'], "");
    let lower = plain(written);
    candidates
        .into_iter()
        .map(|candidate| (distance(&lower, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| {
            let length = candidate.chars().count().max(lower.chars().count());
            *distance <= (length / 3).clamp(1, 3)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap of neighbours) that lead from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (previous[j] + 1).min(row[j - 1] + 1).min(previous[j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = previous;
        previous = row;
    }
    previous[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_found_and_a_far_one_is_not() {
        let keys = ["replicas", "container", "placement"];
        assert_eq!(closest("replica", keys), Some("replicas"));
        assert_eq!(closest("contianer", keys), Some("container"));
        assert_eq!(closest("Placement", keys), Some("placement"));
        assert_eq!(closest("volumes", keys), None);
    }

    #[test]
    fn columns_count_characters_and_skip_a_byte_order_mark() {
        let text = "\u{feff}äö: x\nb: y";
        let lines = LineIndex::new(text);
        assert_eq!(lines.place(text, text.find('x').expect("x is in the text")), (1, 5));
        assert_eq!(lines.place(text, text.len()), (2, 5));
    }

    #[test]
    fn quoted_input_cannot_paint_a_terminal() {
        assert_eq!(quote("a\u{1b}[31mb\n"), "`a\u{fffd}[31mb\\n`");
        assert!(quote(&"x".repeat(100)).chars().count() < 50);
    }

    #[test]
    fn every_code_has_a_sentence() {
        for code in Code::ALL {
            assert!(code.describe().ends_with('.'), "{code}");
        }
    }
}
