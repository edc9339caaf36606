//! From text to admitted documents, or to every problem at once. `validate`, `apply` and `plan` of the CLI call
//! [`admit_all`]; the controller calls [`admit_stored`] on what it finds under `desired/`.
//!
//! The steps: bytes to text, text to spanned values (`yaml.rs`), older versions to the newest, the published JSON Schema,
//! the types, and the rules beyond the schema (`semantics.rs`). Hostile input is bounded at the first two.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use jsonschema::paths::LocationSegment;
use serde_json::Value;

use crate::keys::ResourceKey;
use crate::kinds::{self, CONVERSIONS, Conversion, Document, Kind};
use crate::meta::API_VERSION;
use crate::problem::{Code, Elsewhere, Finding, Problems, Source, closest, quote};
use crate::semantics;
use crate::yaml::{self, Content, MAX_DOCUMENT_BYTES, Step, TextSpan, Tree, describe, one_char, path_text};

/// A document that may be stored and acted on.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// The document, typed.
    pub document: Document,
    /// The document as it was written, as JSON in the newest version; [`Document::to_value`] is the tidy form.
    pub value: Value,
    /// The document with the place of every key and value.
    pub tree: Tree,
    /// The name of its input, where it has one.
    pub file: Option<String>,
    /// The line it begins on, from 1.
    pub line: usize,
}

impl Admitted {
    /// Where it is kept.
    #[must_use]
    pub fn key(&self) -> ResourceKey {
        self.document.key()
    }
}

/// One input of [`admit_all`].
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The name to show; None for standard input.
    pub file: Option<&'a str>,
    /// The bytes, UTF-8 if all is well; at most 16 MiB.
    pub bytes: &'a [u8],
}

/// Admits all documents of one text.
///
/// # Errors
/// Every problem of every document, by place; also when there is no document.
pub fn admit(text: &str, file: Option<&str>) -> Result<Vec<Admitted>, Problems> {
    admit_all(&[Input {
        file,
        bytes: text.as_bytes(),
    }])
}

/// Admits all documents of several inputs together: two documents of one resource are a problem, across files too.
///
/// # Errors
/// Every problem of every document, by input and place; also when an input holds no document.
pub fn admit_all(inputs: &[Input<'_>]) -> Result<Vec<Admitted>, Problems> {
    Admission::new(CONVERSIONS).run(inputs)
}

/// Admits the value of a key under `desired/`.
///
/// # Errors
/// Every problem; beside those of [`admit`]: not exactly one document, more than 1 MiB, a body that disagrees with its key.
pub fn admit_stored(key: &ResourceKey, bytes: &[u8]) -> Result<Admitted, Problems> {
    let file = format!("desired/{key}");
    let input = Input {
        file: Some(&file),
        bytes,
    };
    if bytes.len() > MAX_DOCUMENT_BYTES {
        // Not even looked at: the excerpt of a problem would keep it in memory.
        let source = Source {
            file: Some(file),
            text: String::new(),
        };
        return Err(Problems::new(
            vec![source],
            vec![(0, yaml::too_large(TextSpan::default(), bytes.len()))],
        ));
    }
    let mut admission = Admission::new(CONVERSIONS);
    let mut admitted = admission.run(&[input])?;
    let mut findings = Vec::new();
    for extra in admitted.iter().skip(1) {
        let span = one_char(&admission.sources[0].text, extra.tree.span);
        let finding = Finding::new(
            span,
            "",
            Code::OneDocument,
            "a key of the store holds one document, this is another",
        );
        findings.push((
            0,
            finding.remedy("put each document under a key of its own, or use `reeve apply`"),
        ));
    }
    let Some(first) = (!admitted.is_empty()).then(|| admitted.swap_remove(0)) else {
        // `run` has refused an input without documents.
        return Err(admission.problems(vec![(0, no_document())]));
    };
    findings.extend(mismatch(key, &first, &admission.sources[0].text).map(|finding| (0, finding)));
    if findings.is_empty() {
        Ok(first)
    } else {
        Err(admission.problems(findings))
    }
}

/// The problem that a key under `desired/` hangs on a lease.
#[must_use]
pub fn leased(key: &ResourceKey) -> Problems {
    let finding = Finding::new(
        TextSpan::default(),
        "",
        Code::Leased,
        "the key hangs on a lease and would vanish with it",
    );
    let source = Source {
        file: Some(format!("desired/{key}")),
        text: String::new(),
    };
    Problems::new(vec![source], vec![(0, finding.remedy("put it again without a lease"))])
}

fn mismatch(key: &ResourceKey, admitted: &Admitted, text: &str) -> Option<Finding> {
    let body = admitted.key();
    let at = |path: &[Step]| point(&admitted.tree, text, path, Aim::Value);
    let step = |name: &str| Step::Key(name.to_owned());
    let finding = |path: &[Step], message: String| Finding::new(at(path), path_text(path), Code::KeyMismatch, message);
    if body.kind != key.kind {
        let message = format!(
            "the key is that of a {}, the document is a {}",
            key.kind.name(),
            body.kind.name()
        );
        return Some(finding(&[step("kind")], message).remedy("put it under its own key, or use `reeve apply`"));
    }
    if body.name != key.name {
        let message = format!("the key names `{}`, the document `{}`", key.name, body.name);
        return Some(finding(&[step("metadata"), step("name")], message).remedy(format!("write `name: {}`", key.name)));
    }
    if body.namespace != key.namespace {
        let (Some(of_key), Some(of_body)) = (&key.namespace, &body.namespace) else {
            return None;
        };
        let message = format!("the key is in namespace `{of_key}`, the document in `{of_body}`");
        let written = admitted.document.metadata().namespace.is_some();
        let path = [step("metadata"), step("namespace")];
        let path = if written { &path[..] } else { &path[..1] };
        return Some(finding(path, message).remedy(format!("write `namespace: {of_key}` under `metadata`")));
    }
    None
}

fn no_document() -> Finding {
    Finding::new(TextSpan::default(), "", Code::NoDocument, "there is no document in it")
        .remedy("a document begins with `apiVersion: reeve/v1`; see `reeve explain service`")
}

/// One run over one or more inputs.
pub(crate) struct Admission {
    conversions: &'static [Conversion],
    sources: Vec<Source>,
}

/// A document of an input on its way.
struct Candidate {
    source: usize,
    tree: Tree,
    document: Document,
    value: Value,
}

impl Admission {
    pub(crate) fn new(conversions: &'static [Conversion]) -> Self {
        Admission {
            conversions,
            sources: Vec::new(),
        }
    }

    pub(crate) fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Admitted>, Problems> {
        let mut findings: Vec<(usize, Finding)> = Vec::new();
        let mut candidates: Vec<Candidate> = Vec::new();
        for (source, input) in inputs.iter().enumerate() {
            let text = match std::str::from_utf8(input.bytes) {
                Ok(text) => text,
                Err(error) => {
                    let at = error.valid_up_to();
                    let keep = &input.bytes[..input.bytes.len().min(yaml::MAX_INPUT_BYTES)];
                    let text = String::from_utf8_lossy(keep).into_owned();
                    let span = one_char(&text, TextSpan::new(at, at));
                    self.sources.push(Source {
                        file: input.file.map(str::to_owned),
                        text,
                    });
                    let finding = Finding::new(span, "", Code::NotText, format!("byte {at} is not UTF-8 text"));
                    findings.push((source, finding.remedy("save the file as UTF-8")));
                    continue;
                }
            };
            self.sources.push(Source {
                file: input.file.map(str::to_owned),
                text: text.to_owned(),
            });
            let composed = yaml::compose(text);
            if composed.documents.is_empty() && composed.findings.is_empty() {
                findings.push((source, no_document()));
            }
            for mut finding in composed.findings {
                // The composer does not know where in a document it is.
                if finding.code != Code::Syntax {
                    let home = composed
                        .documents
                        .iter()
                        .find(|tree| tree.span.start <= finding.span.start && finding.span.end <= tree.span.end);
                    finding.path = home
                        .map(|tree| path_text(&tree.path_to(finding.span)))
                        .unwrap_or_default();
                }
                findings.push((source, finding));
            }
            let said: BTreeSet<TextSpan> = findings
                .iter()
                .filter(|(of, _)| *of == source)
                .map(|(_, finding)| finding.span)
                .collect();
            for tree in composed.documents {
                let mut found = Vec::new();
                if let Some((tree, document, value)) = self.one(tree, text, &mut found) {
                    candidates.push(Candidate {
                        source,
                        tree,
                        document,
                        value,
                    });
                }
                // What the text already got wrong (a number too large) is not said again.
                found.retain(|finding| !said.contains(&finding.span));
                findings.extend(found.into_iter().map(|finding| (source, finding)));
            }
        }
        self.twice(&candidates, &mut findings);
        if !findings.is_empty() {
            return Err(self.problems(findings));
        }
        Ok(candidates
            .into_iter()
            .map(|candidate| {
                let source = &self.sources[candidate.source];
                Admitted {
                    document: candidate.document,
                    value: candidate.value,
                    line: 1 + source.text[..candidate.tree.span.start].matches('\n').count(),
                    tree: candidate.tree,
                    file: source.file.clone(),
                }
            })
            .collect())
    }

    /// The end of the run: the texts go into the problems, which show excerpts of them.
    fn problems(&mut self, findings: Vec<(usize, Finding)>) -> Problems {
        Problems::new(std::mem::take(&mut self.sources), findings)
    }

    /// One document; also returned when its only problems are unknown keys, so that others can be compared with it.
    fn one(&self, tree: Tree, text: &str, findings: &mut Vec<Finding>) -> Option<(Tree, Document, Value)> {
        let kind = self.kind(&tree, text, findings)?;
        let written = tree;
        let tree = self.newest(kind, &written, text, findings)?;
        let converted = tree.is_some();
        let tree = tree.unwrap_or_else(|| written.clone());
        let mut found = Vec::new();
        let mut value = tree.to_value();
        let mut unknown = Vec::new();
        if !kind.validator().is_valid(&value) {
            found.extend(schema_findings(kind, &tree, text, &value, &mut unknown));
        }
        let mut scalars = Vec::new();
        semantics::scalars(kind, &tree, text, &mut scalars);
        scalars.retain(|scalar| found.iter().all(|finding| finding.span != scalar.span));
        found.append(&mut scalars);
        let admissible = found.iter().all(|finding| finding.code == Code::UnknownKey);
        let mut document = None;
        if admissible {
            let whole = value.clone();
            for path in &unknown {
                remove(&mut value, path);
            }
            match kind.typed(value) {
                Ok(typed) => {
                    semantics::check(&typed, &tree, text, &mut found);
                    document = Some((typed, whole));
                }
                Err(error) => found.push(
                    Finding::new(
                        point(&tree, text, &error.path, Aim::Value),
                        path_text(&error.path),
                        Code::BadQuantity,
                        reason(&error.reason),
                    )
                    .remedy(format!("see `reeve explain {}`", explain_path(kind, &error.path))),
                ),
            }
        }
        if converted {
            for finding in &mut found {
                finding.path = path_text(&written.path_to(finding.span));
            }
        }
        findings.append(&mut found);
        document.map(|(document, value)| (tree, document, value))
    }

    fn kind(&self, tree: &Tree, text: &str, findings: &mut Vec<Finding>) -> Option<Kind> {
        if !matches!(tree.content, Content::Mapping(_)) {
            let finding = Finding::new(
                one_line(text, tree.span),
                "",
                Code::WrongType,
                format!("a document is a mapping, this is {}", describe(&tree.content)),
            );
            findings.push(finding.remedy("begin with `apiVersion: reeve/v1` and `kind: Service`, each on its line"));
            return None;
        }
        let path = [Step::Key("kind".to_owned())];
        let at = point(tree, text, &path, Aim::Value);
        let Some(kind) = tree.get("kind") else {
            let finding = Finding::new(
                root_place(tree, text),
                "",
                Code::MissingKey,
                "the key `kind` is missing",
            );
            findings.push(finding.remedy(format!("add `kind:`; there are {}", kinds::all_kinds())));
            return None;
        };
        let Some(name) = kind.text() else {
            let message = format!("found {}, a kind is a text", describe(&kind.content));
            let finding = Finding::new(at, "kind", Code::WrongType, message);
            findings.push(finding.remedy(format!("there are {}", kinds::all_kinds())));
            return None;
        };
        let found = Kind::from_name(name);
        if found.is_none() {
            let near = Kind::from_person(name).ok().map(Kind::name);
            let near = near.or_else(|| closest(name, Kind::ALL.iter().map(|kind| kind.name())));
            let finding = Finding::new(at, "kind", Code::UnknownKind, format!("{} is not a kind", quote(name)));
            findings.push(match near {
                Some(near) => finding.remedy(format!("did you mean `{near}`?")),
                None => finding.remedy(format!("there are {}", kinds::all_kinds())),
            });
        }
        found
    }

    /// The document in the newest version: None inside when it is that already, None outside when it cannot be.
    #[allow(clippy::option_option)]
    fn newest(&self, kind: Kind, tree: &Tree, text: &str, findings: &mut Vec<Finding>) -> Option<Option<Tree>> {
        // A missing or ill-typed version is the schema's to refuse.
        let Some(version) = tree.get("apiVersion").and_then(Tree::text) else {
            return Some(None);
        };
        if version == API_VERSION {
            return Some(None);
        }
        let mut version = version.to_owned();
        let mut newest = tree.clone();
        // Each conversion is used once at most, so this ends.
        for _ in 0..=self.conversions.len() {
            if version == API_VERSION {
                newest.set_text("apiVersion", API_VERSION);
                return Some(Some(newest));
            }
            let next = self
                .conversions
                .iter()
                .find(|step| step.kind == kind && step.from == version);
            let Some(step) = next else { break };
            (step.convert)(&mut newest);
            step.to.clone_into(&mut version);
        }
        let path = [Step::Key("apiVersion".to_owned())];
        let at = point(tree, text, &path, Aim::Value);
        let message = format!("{} is not a version of {}", quote(&version), kind.name());
        let older = self
            .conversions
            .iter()
            .filter(|step| step.kind == kind)
            .map(|step| format!(", older: `{}`", step.from));
        findings.push(
            Finding::new(at, "apiVersion", Code::UnknownVersion, message).remedy(format!(
                "write `apiVersion: {API_VERSION}`{}",
                older.collect::<String>()
            )),
        );
        None
    }

    /// Two documents of one resource, and two workloads of one name in a namespace.
    fn twice(&self, candidates: &[Candidate], findings: &mut Vec<(usize, Finding)>) {
        let mut seen: BTreeMap<ResourceKey, usize> = BTreeMap::new();
        let mut workloads: BTreeMap<(crate::names::Namespace, crate::names::ResourceName), usize> = BTreeMap::new();
        for (at, candidate) in candidates.iter().enumerate() {
            let key = candidate.document.key();
            let (first, code, message) = match seen.get(&key) {
                Some(first) => {
                    let message = format!("{} `{}` is declared twice", key.kind.name(), key.name);
                    (Some(*first), Code::DuplicateDocument, message)
                }
                None => match &key.namespace {
                    // Every namespaced kind is a workload so far.
                    Some(namespace) => {
                        let place = (namespace.clone(), key.name.clone());
                        let first = workloads.get(&place).copied();
                        workloads.entry(place).or_insert(at);
                        (
                            first,
                            Code::NameTaken,
                            format!("the name `{}` is taken by another workload", key.name),
                        )
                    }
                    None => (None, Code::NameTaken, String::new()),
                },
            };
            seen.entry(key).or_insert(at);
            if let Some(first) = first {
                let first = &candidates[first];
                let path = [Step::Key("metadata".to_owned()), Step::Key("name".to_owned())];
                let place = |candidate: &Candidate| {
                    point(&candidate.tree, &self.sources[candidate.source].text, &path, Aim::Value)
                };
                let mut finding = Finding::new(place(candidate), path_text(&path), code, message)
                    .remedy("remove one of them, or give it another name or namespace");
                let source = (first.source != candidate.source).then_some(first.source);
                finding.related.push(Elsewhere {
                    source,
                    span: place(first),
                    text: "first here".to_owned(),
                });
                findings.push((candidate.source, finding));
            }
        }
    }
}

/// What a finding points at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// The value, or its key where the value takes several lines.
    Value,
    /// The key.
    Key,
}

/// The place of a path in the text; of the nearest value around it where there is no such path.
pub(crate) fn point(tree: &Tree, text: &str, path: &[Step], aim: Aim) -> TextSpan {
    for length in (0..=path.len()).rev() {
        let Some(spans) = tree.find(&path[..length]) else {
            continue;
        };
        if length == 0 {
            return root_place(tree, text);
        }
        let long = text
            .get(spans.value.start..spans.value.end)
            .is_some_and(|part| part.contains('\n'));
        return match (spans.key, aim, long || length < path.len()) {
            (Some(key), Aim::Key, _) | (Some(key), Aim::Value, true) => key,
            (None, _, true) | (None, Aim::Key, false) => match tree.at(&path[..length]).map(|node| &node.content) {
                Some(Content::Mapping(entries)) if !entries.is_empty() => entries[0].0.span,
                _ => one_line(text, spans.value),
            },
            (_, Aim::Value, false) => spans.value,
        };
    }
    root_place(tree, text)
}

fn root_place(tree: &Tree, text: &str) -> TextSpan {
    match &tree.content {
        Content::Mapping(entries) if !entries.is_empty() => entries[0].0.span,
        _ => one_line(text, tree.span),
    }
}

/// The part of a span on its first line.
fn one_line(text: &str, span: TextSpan) -> TextSpan {
    let part = text.get(span.start..span.end).unwrap_or_default();
    let end = part
        .find('\n')
        .map_or(span.end, |at| span.start + part[..at].trim_end().len());
    TextSpan::new(span.start, end.max(span.start)).within(text)
}

fn remove(value: &mut Value, path: &[Step]) {
    let Some((Step::Key(last), parents)) = path.split_last() else {
        return;
    };
    let mut at = value;
    for step in parents {
        let next = match step {
            Step::Key(name) => at.get_mut(name),
            Step::Index(index) => at.get_mut(index),
        };
        let Some(next) = next else { return };
        at = next;
    }
    if let Some(object) = at.as_object_mut() {
        object.remove(last);
    }
}

/// A reason of our own types as it is; of serde, without what only a programmer understands.
fn reason(text: &str) -> String {
    let text = text.split(" at line ").next().unwrap_or(text);
    text.chars().take(300).collect()
}

fn explain_path(kind: Kind, path: &[Step]) -> String {
    let keys = path.iter().filter_map(|step| match step {
        Step::Key(name) if kind.schema_at(path).is_some() => Some(format!(".{name}")),
        Step::Key(_) | Step::Index(_) => None,
    });
    format!("{}{}", kind.segment(), keys.collect::<String>())
}

/// The validator's errors in our words. `unknown` receives the paths of unknown keys.
fn schema_findings(kind: Kind, tree: &Tree, text: &str, value: &Value, unknown: &mut Vec<Vec<Step>>) -> Vec<Finding> {
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

#[cfg(test)]
#[path = "admit/tests.rs"]
mod tests;
