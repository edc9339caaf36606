//! From text to admitted documents, or to every problem at once. `validate`, `apply` and `plan` of the CLI call
//! [`admit_all`]; the controller calls [`admit_stored`] on what it finds under `desired/`.
//!
//! The steps: bytes to text, text to spanned values (`yaml.rs`), older versions to the newest, the published JSON Schema,
//! the types, and the rules beyond the schema (`semantics.rs`). Hostile input is bounded at the first two.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use self::translate::schema_findings;
use crate::keys::ResourceKey;
use crate::kinds::{self, CONVERSIONS, Conversion, Document, Kind};
use crate::meta::API_VERSION;
use crate::problem::{Code, Elsewhere, Finding, Problems, Source, closest, quote};
use crate::semantics;
use crate::yaml::{self, Content, MAX_DOCUMENT_BYTES, Step, TextSpan, Tree, describe, one_char, path_text};

mod translate;

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
                    Some(namespace) if key.kind.is_workload() => {
                        let place = (namespace.clone(), key.name.clone());
                        let first = workloads.get(&place).copied();
                        workloads.entry(place).or_insert(at);
                        (
                            first,
                            Code::NameTaken,
                            format!("the name `{}` is taken by another workload", key.name),
                        )
                    }
                    Some(_) | None => (None, Code::NameTaken, String::new()),
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
        Content::Null
        | Content::Bool(_)
        | Content::Number(_)
        | Content::Text(_)
        | Content::List(_)
        | Content::Mapping(_) => one_line(text, tree.span),
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

#[cfg(test)]
#[path = "admit/tests.rs"]
mod tests;
