//! Admission against a corpus of good and bad documents; see `corpus/README.md` for its form. To write
//! `corpus/values.jsonl` anew: `REEVE_UPDATE=1 cargo nextest run -p schemas corpus`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use schemas::problem::{Code, CodeLevel};
use schemas::{Kind, admit, write};
use serde_json::{Value, json};

struct Case {
    id: String,
    text: String,
    /// Code, line and column of each problem; none for a good document.
    problems: Vec<(String, usize, usize)>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn cases(verdict: &str) -> Vec<Case> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder().join(verdict))
        .expect("the folder is there")
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let name = file
            .file_stem()
            .expect("a file has a name")
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&file).expect("the file can be read");
        for (number, part) in text.split("=====\n").enumerate() {
            let id = format!("{verdict}/{name}#{}", number + 1);
            let (problems, text) = match part.strip_prefix("#! ") {
                Some(rest) => {
                    let (first, text) = rest.split_once('\n').expect("a document follows its problems");
                    (first.split(", ").map(|problem| parse(&id, problem)).collect(), text)
                }
                None => (Vec::new(), part),
            };
            assert_eq!(problems.is_empty(), verdict == "good", "{id}");
            cases.push(Case {
                id,
                text: text.to_owned(),
                problems,
            });
        }
    }
    cases
}

fn parse(id: &str, problem: &str) -> (String, usize, usize) {
    let parse = || {
        let (code, place) = problem.split_once(' ')?;
        let (line, column) = place.split_once(':')?;
        Some((code.to_owned(), line.parse().ok()?, column.parse().ok()?))
    };
    parse().unwrap_or_else(|| panic!("{id}: `{problem}` is not `Code line:column`"))
}

fn level(code: &str) -> CodeLevel {
    let found = Code::ALL.iter().find(|known| known.name() == code);
    found.unwrap_or_else(|| panic!("{code} is no code")).level()
}

#[test]
fn good_documents_are_admitted_and_come_back_equal() {
    for case in cases("good") {
        let admitted =
            admit(&case.text, None).unwrap_or_else(|problems| panic!("{}: {problems}\n{}", case.id, case.text));
        assert_eq!(admitted.len(), 1, "{}", case.id);
        let document = &admitted[0].document;
        for written in [
            write::yaml(document).expect("YAML"),
            write::json(document),
            write::json_line(document),
        ] {
            let again = admit(&written, None).unwrap_or_else(|problems| panic!("{}: {problems}\n{written}", case.id));
            assert_eq!(again[0].document, *document, "{}: {written}", case.id);
        }
    }
}

#[test]
fn bad_documents_have_their_problems_at_their_places() {
    let mut wrong = Vec::new();
    for case in cases("bad") {
        let found: Vec<(String, usize, usize)> = match admit(&case.text, None) {
            Ok(_) => Vec::new(),
            Err(problems) => {
                for problem in &problems.problems {
                    assert!(problem.remedy.is_some(), "{}: {problem} has no remedy", case.id);
                    assert!(problem.span().start <= problem.span().end && problem.span().end <= case.text.len());
                }
                assert!(!problems.render(schemas::Look::default()).is_empty());
                problems
                    .problems
                    .iter()
                    .map(|problem| (problem.code.name().to_owned(), problem.line, problem.column))
                    .collect()
            }
        };
        if found != case.problems {
            wrong.push(format!(
                "{}: wants {:?}, gets {found:?}\n{}",
                case.id, case.problems, case.text
            ));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_corpus_covers_every_key_and_every_code() {
    let (good, bad) = (cases("good"), cases("bad"));
    let texts: BTreeSet<&str> = good.iter().chain(&bad).map(|case| case.text.as_str()).collect();
    assert_eq!(texts.len(), good.len() + bad.len(), "documents are distinct");
    assert!(texts.len() >= 300, "{}", texts.len());

    let mut missing = BTreeSet::new();
    for kind in Kind::ALL {
        let values: Vec<Value> = good
            .iter()
            .flat_map(|case| admit(&case.text, None).expect("good"))
            .filter(|admitted| admitted.document.kind() == *kind)
            .map(|admitted| admitted.value)
            .collect();
        uncovered(
            kind.schema(),
            kind.schema(),
            &values.iter().collect::<Vec<_>>(),
            kind.segment().to_owned(),
            &mut missing,
        );
    }
    assert!(missing.is_empty(), "no good document has {missing:#?}");

    let seen: BTreeSet<String> = bad
        .iter()
        .flat_map(|case| case.problems.iter().map(|(code, _, _)| code.clone()))
        .collect();
    for code in Code::ALL.iter().filter(|code| code.level() != CodeLevel::Context) {
        // These need bytes that a text file cannot show; unit tests have them.
        let elsewhere = [Code::NotText, Code::TooLarge, Code::TooManyValues].contains(code);
        assert!(elsewhere || seen.contains(code.name()), "no bad document has {code}");
    }
}

/// Adds the keys and values of enumerations that none of `values` has.
fn uncovered(root: &Value, schema: &Value, values: &[&Value], path: String, missing: &mut BTreeSet<String>) {
    let schema = match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) => root.pointer(&reference[1..]).expect("references are local"),
        None => schema,
    };
    for word in schema.get("enum").and_then(Value::as_array).into_iter().flatten() {
        if !values.contains(&word) {
            missing.insert(format!("{path}={word}"));
        }
    }
    for (key, property) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let inner: Vec<&Value> = values.iter().filter_map(|value| value.get(key)).collect();
        // Every limit of the kernel is written alike.
        if inner.is_empty() && path.ends_with(".ulimits") {
            continue;
        }
        if inner.is_empty() {
            missing.insert(format!("{path}.{key}"));
        } else {
            uncovered(root, property, &inner, format!("{path}.{key}"), missing);
        }
    }
    if let Some(items) = schema.get("items") {
        let inner: Vec<&Value> = values.iter().filter_map(|value| value.as_array()).flatten().collect();
        uncovered(root, items, &inner, format!("{path}[]"), missing);
    }
}

/// What another validator can check: the values, and whether the published schema admits them.
#[test]
fn values_for_an_independent_validator_are_current() {
    let mut lines = String::new();
    for case in cases("good").into_iter().chain(cases("bad")) {
        let levels: Vec<CodeLevel> = case.problems.iter().map(|(code, _, _)| level(code)).collect();
        if levels.contains(&CodeLevel::Text) {
            continue;
        }
        let trees = schemas::yaml::read(&case.text, None).unwrap_or_else(|problems| panic!("{}: {problems}", case.id));
        let admits = !levels.contains(&CodeLevel::Schema);
        lines.push_str(&json!({ "id": case.id, "schemaAdmits": admits, "value": trees[0].to_value() }).to_string());
        lines.push('\n');
    }
    let path = folder().join("values.jsonl");
    if std::env::var_os("REEVE_UPDATE").is_some() {
        std::fs::write(&path, &lines).expect("the values can be written");
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == lines,
        "values.jsonl is stale; REEVE_UPDATE=1 cargo nextest run -p schemas corpus"
    );
}

/// The README lists every rule beyond the schema.
#[test]
fn the_list_of_rules_beyond_the_schema_is_current() {
    let path = folder().join("README.md");
    let text = std::fs::read_to_string(&path).expect("the README can be read");
    let head = "| code | rule |\n|---|---|\n";
    let at = text.find(head).expect("the README has the table") + head.len();
    let rules = schemas::problem::SEMANTIC_RULES;
    let table: String = rules
        .iter()
        .map(|(code, rule)| format!("| `{code}` | {rule} |\n"))
        .collect();
    if std::env::var_os("REEVE_UPDATE").is_some() {
        std::fs::write(&path, format!("{}{table}", &text[..at])).expect("the README can be written");
    }
    let stored = std::fs::read_to_string(&path).expect("the README can be read");
    assert!(
        stored[at..] == table,
        "README.md is stale; REEVE_UPDATE=1 cargo nextest run -p schemas corpus"
    );
}
