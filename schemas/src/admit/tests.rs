//! Admission: versions, keys of the store, several documents; the corpus under `tests/` covers the rest.

use super::*;

const HELLO: &str = "\
apiVersion: reeve/v1
kind: Service
metadata:
  name: hello
spec:
  container:
    image: hello:1
";

fn key(text: &str) -> ResourceKey {
    match crate::keys::Root::default().parse(format!("/reeve/desired/{text}").as_bytes()) {
        Some(crate::keys::Key::Desired(key)) => key,
        other => panic!("{text} is {other:?}"),
    }
}

fn codes(problems: &Problems) -> Vec<Code> {
    problems.problems.iter().map(|problem| problem.code).collect()
}

/// `reeve/v0` had `count` for `replicas`, and the image beside the container.
const OLDER: &[Conversion] = &[
    Conversion {
        kind: Kind::Service,
        from: "reeve/v0",
        to: "reeve/v0.5",
        convert: rename_count,
    },
    Conversion {
        kind: Kind::Service,
        from: "reeve/v0.5",
        to: "reeve/v1",
        convert: move_image,
    },
];

fn spec(tree: &mut Tree) -> Option<&mut Vec<(yaml::Key, Tree)>> {
    let Content::Mapping(entries) = &mut tree.content else {
        return None;
    };
    match entries
        .iter_mut()
        .find(|(key, _)| key.name == "spec")
        .map(|(_, value)| &mut value.content)
    {
        Some(Content::Mapping(entries)) => Some(entries),
        _ => None,
    }
}

fn rename_count(tree: &mut Tree) {
    for (key, _) in spec(tree).into_iter().flatten().filter(|(key, _)| key.name == "count") {
        key.name = "replicas".to_owned();
    }
}

fn move_image(tree: &mut Tree) {
    let Some(entries) = spec(tree) else { return };
    let Some(at) = entries.iter().position(|(key, _)| key.name == "image") else {
        return;
    };
    let (key, image) = entries.remove(at);
    let span = image.span;
    let content = Content::Mapping(vec![(key.clone(), image)]);
    entries.push((
        yaml::Key {
            name: "container".to_owned(),
            ..key
        },
        Tree { span, content },
    ));
}

fn admit_older(text: &str) -> Result<Vec<Admitted>, Problems> {
    Admission::new(OLDER).run(&[Input {
        file: None,
        bytes: text.as_bytes(),
    }])
}

#[test]
fn an_older_version_is_read_as_the_newest() {
    let old = "apiVersion: reeve/v0\nkind: Service\nmetadata: {name: hello}\nspec:\n  count: 2\n  image: hello:1\n";
    let new = HELLO.replace("spec:\n", "spec:\n  replicas: 2\n");
    let (old, new) = (
        admit_older(old).expect("the older version"),
        admit(&new, None).expect("the newest version"),
    );
    assert_eq!(old[0].document, new[0].document);
    assert_eq!(old[0].value, new[0].value);
}

#[test]
fn a_problem_of_an_older_version_is_shown_where_and_as_it_was_written() {
    let old = "apiVersion: reeve/v0\nkind: Service\nmetadata: {name: hello}\nspec:\n  count: two\n  image: Hello\n";
    let problems = admit_older(old).expect_err("a count that is no number");
    let found: Vec<(usize, usize, &str)> = problems
        .problems
        .iter()
        .map(|problem| (problem.line, problem.column, problem.path.as_str()))
        .collect();
    assert_eq!(found, [(5, 10, "spec.count"), (6, 10, "spec.image")]);
    let unknown = admit(old, None).expect_err("a version that only tests know");
    assert_eq!(codes(&unknown), [Code::UnknownVersion]);
    let wrong = admit_older(&old.replace("reeve/v0", "reeve/v9")).expect_err("no such version");
    assert!(
        wrong.problems[0]
            .remedy
            .as_deref()
            .is_some_and(|remedy| remedy.contains("older: `reeve/v0`")),
        "{wrong}"
    );
}

#[test]
fn a_stored_value_agrees_with_its_key() {
    let place = key("default/service/hello");
    assert_eq!(admit_stored(&place, HELLO.as_bytes()).expect("it agrees").key(), place);
    for (other, path) in [
        ("default/service/bye", "metadata.name"),
        ("prod/service/hello", "metadata"),
        ("_/node/hello", "kind"),
    ] {
        let problems = admit_stored(&key(other), HELLO.as_bytes()).expect_err(other);
        assert_eq!(codes(&problems), [Code::KeyMismatch], "{other}");
        assert_eq!(problems.problems[0].path, path, "{other}");
        assert!(problems.problems[0].remedy.is_some());
    }
    let named = HELLO.replace("  name: hello\n", "  name: hello\n  namespace: prod\n");
    assert!(admit_stored(&key("prod/service/hello"), named.as_bytes()).is_ok());
    assert_eq!(
        codes(&admit_stored(&place, named.as_bytes()).expect_err("another namespace")),
        [Code::KeyMismatch]
    );
}

#[test]
fn a_stored_value_is_one_document_of_bounded_size() {
    let place = key("default/service/hello");
    let two = format!("{HELLO}---\n{}", HELLO.replace("name: hello", "name: bye"));
    assert_eq!(
        codes(&admit_stored(&place, two.as_bytes()).expect_err("two")),
        [Code::OneDocument]
    );
    assert_eq!(
        codes(&admit_stored(&place, b"").expect_err("nothing")),
        [Code::NoDocument]
    );
    assert_eq!(
        codes(&admit_stored(&place, b"# nothing\n---\n").expect_err("nothing")),
        [Code::NoDocument]
    );
    assert_eq!(
        codes(&admit_stored(&place, &vec![b'x'; 2 << 20]).expect_err("2 MiB")),
        [Code::TooLarge]
    );
    assert_eq!(
        codes(&admit_stored(&place, b"\xff\xfe\x00").expect_err("no text")),
        [Code::NotText]
    );
    assert_eq!(codes(&leased(&place)), [Code::Leased]);
}

#[test]
fn one_resource_twice_is_a_problem_across_files_too() {
    let inputs = [
        Input {
            file: Some("a.yaml"),
            bytes: HELLO.as_bytes(),
        },
        Input {
            file: Some("b.yaml"),
            bytes: HELLO.as_bytes(),
        },
    ];
    let problems = admit_all(&inputs).expect_err("twice");
    assert_eq!(codes(&problems), [Code::DuplicateDocument]);
    let problem = &problems.problems[0];
    assert_eq!(problem.file.as_deref(), Some("b.yaml"));
    assert_eq!(problem.related[0].file.as_deref(), Some("a.yaml"));
    let shown = problems.render(crate::problem::Look::default());
    assert!(shown.contains("a.yaml:4:9"), "{shown}");
    let apart = HELLO.replace("  name: hello\n", "  name: hello\n  namespace: prod\n");
    let inputs = [
        inputs[0],
        Input {
            file: Some("b.yaml"),
            bytes: apart.as_bytes(),
        },
    ];
    assert_eq!(admit_all(&inputs).expect("two namespaces").len(), 2);
}

#[test]
fn problems_are_capped_and_counted() {
    let mut text = HELLO.to_owned();
    for n in 0..250 {
        text.push_str(&format!("    unknown{n}: 1\n"));
    }
    let problems = admit(&text, None).expect_err("unknown keys");
    assert_eq!(
        (problems.problems.len(), problems.more, problems.count()),
        (100, 150, 250)
    );
    let lines: Vec<usize> = problems.problems.iter().map(|problem| problem.line).collect();
    assert!(lines.is_sorted(), "{lines:?}");
    assert!(
        problems.summary().ends_with("(and 249 more problems)"),
        "{}",
        problems.summary()
    );
    assert!(
        problems
            .render(crate::problem::Look::default())
            .contains("250 problems, the first 100 shown")
    );
}

#[test]
fn problems_are_read_by_programs_too() {
    let problems = admit(&HELLO.replace("image:", "imag:"), Some("hello.yaml")).expect_err("an unknown key");
    let json = serde_json::to_value(&problems).expect("problems are JSON");
    let first = &json["problems"][1];
    assert_eq!(first["code"], "UnknownKey");
    assert_eq!(
        (&first["line"], &first["column"], &first["endColumn"]),
        (&7.into(), &5.into(), &9.into())
    );
    assert_eq!(first["file"], "hello.yaml");
    assert_eq!(first["remedy"], "did you mean `image`?");
    let back: crate::problem::Problem = serde_json::from_value(first.clone()).expect("a problem reads back");
    assert_eq!(back.line(), problems.problems[1].line());
    assert_eq!(
        back.line(),
        "line 7, column 5: spec.container: unknown key `imag`; did you mean `image`?"
    );
}

#[test]
fn rules_beyond_the_schema_are_checked_beside_unknown_keys() {
    let text = HELLO.replace(
        "    image: hello:1\n",
        "    image: hello:1\n    env: {\"\": x}\n    surprise: 1\n",
    );
    let problems = admit(&text, None).expect_err("two problems");
    assert_eq!(codes(&problems), [Code::EnvName, Code::UnknownKey]);
}

#[test]
fn what_is_written_is_admitted_again_and_equal() {
    let text = HELLO.replace(
        "    image: hello:1\n",
        "    image: hello:1\n    env: {A: \"1.10\", B: 'no', C: \"a\\nb \\\"c\\\"\\t: d # e\", D: '', E: \" x \", F: '0x1f', G: '~'}\n\
         \x20   command: ['- a', '&b', '*c', '!d', '%e', '@f', '`g', '{h', '[i', '|', '>', '---', '...', '? k', ': l', 'true', 'Null', \"\\u0001\\u0085\\u2028\\ufeffz\", \"tail\\n\\n\"]\n",
    );
    let first = admit(&text, None).expect("a good document");
    for written in [
        crate::write::yaml(&first[0].document).expect("YAML"),
        crate::write::json(&first[0].document),
        crate::write::json_line(&first[0].document),
    ] {
        let again = admit(&written, None).unwrap_or_else(|problems| panic!("{problems}\n{written}"));
        assert_eq!(again[0].document, first[0].document, "{written}");
    }
    assert!(
        crate::write::yaml(&first[0].document)
            .expect("YAML")
            .starts_with("apiVersion: reeve/v1\nkind: Service\nmetadata:\n")
    );
}

/// `cargo test -p schemas --release -- --ignored --nocapture how_long` prints it.
#[test]
#[ignore = "a measurement, not a test"]
fn how_long_admission_of_hello_takes() {
    for _ in 0..1_000 {
        assert!(admit(HELLO, None).is_ok());
    }
    let start = std::time::Instant::now();
    for _ in 0..10_000 {
        assert!(admit(HELLO, None).is_ok());
    }
    println!("{:?} per document", start.elapsed() / 10_000);
}
