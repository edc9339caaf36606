//! The composer: scalars, spans, limits, and what it refuses.

use serde_json::json;

use super::*;
use crate::problem::Code;

fn value(text: &str) -> Value {
    let composed = compose(text);
    assert_eq!(composed.findings, vec![], "{text}");
    assert_eq!(composed.documents.len(), 1, "{text}");
    composed.documents[0].to_value()
}

fn codes(text: &str) -> Vec<Code> {
    compose(text).findings.iter().map(|finding| finding.code).collect()
}

#[test]
fn plain_scalars_are_those_of_yaml_1_2() {
    for word in [
        "no", "yes", "on", "off", "y", "n", "0777", "00", "1_000", "0x", "0o8", "-x", "1.2.3", "12:30", ".", "+", "e5",
        "1e",
    ] {
        assert_eq!(value(&format!("a: {word}")), json!({ "a": word }), "{word}");
    }
    for (word, number) in [("0o17", 15), ("0x1f", 31), ("-5", -5), ("+5", 5), ("0", 0), ("-0", 0)] {
        assert_eq!(value(&format!("a: {word}")), json!({ "a": number }), "{word}");
    }
    assert_eq!(
        value("[0.5, .5, -1.25, 1e-2, 1e3, 2.0]"),
        json!([0.5, 0.5, -1.25, 0.01, 1000.0, 2.0])
    );
    assert_eq!(
        value("[~, null, Null, NULL, true, False]"),
        json!([null, null, null, null, true, false])
    );
    assert_eq!(value("a:\nb: ''"), json!({ "a": null, "b": "" }));
    assert_eq!(
        value("[18446744073709551615, -9223372036854775808]"),
        json!([u64::MAX, i64::MIN])
    );
}

#[test]
fn a_number_that_would_lose_digits_is_refused() {
    for word in [
        "18446744073709551616",
        "-9223372036854775809",
        "1e999",
        ".inf",
        "-.Inf",
        ".nan",
        "0xfffffffffffffffff",
    ] {
        assert_eq!(codes(&format!("a: {word}")), [Code::BadNumber], "{word}");
    }
}

#[test]
fn json_is_read_like_yaml() {
    let text = "{\n\t\"a\": [1, 2.5, -3, 1E2, true, null],\n\t\"b\": {\"c\": \"x\\u00e4\\ud83d\\ude00\\/\\n\"},\"d\":\"e\"\r\n}\n";
    let ours = value(text);
    assert_eq!(
        ours,
        json!({"a": [1, 2.5, -3, 100.0, true, null], "b": {"c": "xä😀/\n"}, "d": "e"})
    );
}

#[test]
fn carriage_returns_and_a_byte_order_mark_are_handled() {
    let text = "\u{feff}a: 1\r\nb:\r\n  - x\r\n  - y\r\n";
    assert_eq!(value(text), json!({"a": 1, "b": ["x", "y"]}));
    let composed = compose(text);
    let spans = composed.documents[0].pointers();
    assert_eq!(&text[spans["/b/1"].value.start..spans["/b/1"].value.end], "y");
}

#[test]
fn every_key_and_value_has_its_span() {
    let text = "a: {x: 1, \"y z\": [2, 'drei']}\nb:\n  - c: |\n      text\n      more\n    d:\n  - e\nf: \"g\"\n";
    let spans = compose(text).documents[0].pointers();
    let part = |span: TextSpan| &text[span.start..span.end];
    let both = |pointer: &str| {
        let found = spans[pointer];
        (found.key.map(part), part(found.value))
    };
    assert_eq!(both("/a"), (Some("a"), "{x: 1, \"y z\": [2, 'drei']}"));
    assert_eq!(both("/a/x"), (Some("x"), "1"));
    assert_eq!(both("/a/y z"), (Some("\"y z\""), "[2, 'drei']"));
    assert_eq!(both("/a/y z/1"), (None, "'drei'"));
    assert_eq!(both("/b/0/c"), (Some("c"), "text\n      more"));
    assert_eq!(both("/b/0/d"), (Some("d"), "d"), "an empty value is at its key");
    assert_eq!(both("/b/1"), (None, "e"));
    assert_eq!(both("/f"), (Some("f"), "\"g\""));
    assert!(part(spans["/b"].value).starts_with("- c"));
    assert!(part(spans["/b"].value).ends_with("- e"));
}

#[test]
fn duplicate_keys_are_refused_with_both_places() {
    let composed = compose("a: 1\nb: 2\na: 3\n");
    assert_eq!(composed.findings.len(), 1);
    let finding = &composed.findings[0];
    assert_eq!(finding.code, Code::DuplicateKey);
    assert_eq!(finding.span, TextSpan::new(10, 11));
    assert_eq!(finding.related[0].span, TextSpan::new(0, 1));
    let many: String = (0..40)
        .map(|n| format!("k{n}: 1\n"))
        .chain(["k3: 2\nk39: 2\n".to_owned()])
        .collect();
    assert_eq!(codes(&many), [Code::DuplicateKey, Code::DuplicateKey]);
    assert_eq!(codes("{a: 1, \"a\": 2}"), [Code::DuplicateKey]);
}

#[test]
fn keys_are_texts() {
    for text in [
        "1: a",
        "true: a",
        "~: a",
        "{a: b}: c",
        "? [a]\n: b",
        "1.5: x",
        ": a",
        "a: {{ b }}",
    ] {
        assert_eq!(codes(text), [Code::BadKey], "{text}");
    }
    assert_eq!(
        value("'1': a\n\"true\": b\nno: c"),
        json!({"1": "a", "true": "b", "no": "c"})
    );
    let composed = compose("8080: a");
    assert_eq!(composed.findings[0].remedy.as_deref(), Some("quote it: \"8080\""));
}

#[test]
fn only_core_tags_are_honoured() {
    assert_eq!(
        value("[!!str 5, !!int \"5\", !!float 1.5, !!bool 'true', !!null '', !!map {a: 1}, !!seq [1], ! 12]"),
        json!(["5", 5, 1.5, true, null, {"a": 1}, [1], "12"])
    );
    for text in [
        "a: !Ref b",
        "a: !!binary aGk=",
        "a: !!int x",
        "a: !!bool 1",
        "!!seq {a: 1}",
        "!<tag:x,2000:y> z",
        "a: !!timestamp 2001-01-01",
    ] {
        assert_eq!(codes(text), [Code::BadTag], "{text}");
    }
}

#[test]
fn aliases_are_expanded_and_merge_keys_refused() {
    assert_eq!(
        value("a: &x {k: [1]}\nb: *x\nc: &y text\nd: *y"),
        json!({"a": {"k": [1]}, "b": {"k": [1]}, "c": "text", "d": "text"})
    );
    assert_eq!(codes("a: &x {k: 1}\nb:\n  <<: *x\n  l: 2"), [Code::MergeKey]);
    assert_eq!(value("'<<': 1"), json!({"<<": 1}));
    assert_eq!(codes("a: *nothing"), [Code::BadAlias]);
    assert_eq!(codes("a: &x [1, *x]"), [Code::BadAlias]);
}

#[test]
fn alias_bombs_are_defused() {
    let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(",");
        text.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    assert_eq!(codes(&text), [Code::TooManyValues]);
    let long = format!("a: &a '{}'\nb: [{}]\n", "x".repeat(500_000), vec!["*a"; 20].join(","));
    assert_eq!(codes(&long), [Code::TooManyValues]);
    let nested: String = (0..60).map(|n| format!("&n{n} [")).collect::<String>() + &"]".repeat(60);
    let deep = format!("a: {nested}\nb: {}*n0{}", "[".repeat(40), "]".repeat(40));
    assert_eq!(codes(&deep), [Code::TooDeep]);
}

#[test]
fn depth_size_and_number_of_values_are_limited() {
    for open in ["[", "{a: ", "- "] {
        assert_eq!(codes(&open.repeat(200)), [Code::TooDeep], "{open}");
        assert_eq!(codes(&open.repeat(100_000)), [Code::TooDeep], "{open}");
    }
    assert_eq!(
        codes(&format!("a: '{}'", "x".repeat(MAX_DOCUMENT_BYTES))),
        [Code::TooLarge]
    );
    assert_eq!(
        codes(&format!("[{}]", "1,".repeat(MAX_VALUES + 1))),
        [Code::TooManyValues]
    );
    assert_eq!(codes(&"x".repeat(MAX_INPUT_BYTES + 1)), [Code::TooLarge]);
    assert_eq!(codes(&"--- a\n".repeat(MAX_DOCUMENTS + 1)), [Code::TooLarge]);
    assert_eq!(codes(&format!("a: '{}'", "x".repeat(MAX_DOCUMENT_BYTES - 100))), []);
}

#[test]
fn a_broken_document_hides_nothing_of_the_next() {
    let composed = compose("a: [1\n---\nb: 1\nb: 2\n---\nc: 'x\n--- # fine\nd: 1\n");
    let codes: Vec<Code> = composed.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [Code::Syntax, Code::DuplicateKey, Code::Syntax]);
    assert_eq!(composed.documents.len(), 2);
}

#[test]
fn empty_documents_are_skipped() {
    let composed = compose("# only a comment\n---\n---\na: 1\n---\n# nothing\n...\n");
    assert_eq!(composed.findings, vec![]);
    assert_eq!(composed.documents.len(), 1);
    assert!(compose("").documents.is_empty());
}

#[test]
fn common_mistakes_have_a_place_and_a_remedy() {
    for (text, start) in [
        ("a:\n\tb: 1\n", 3),
        ("a: b: c\n", 4),
        ("a: \"x\n", 4),
        ("a:\n  b: 1\n c: 2\n", 11),
        ("a: [1, 2\n", 3),
        ("a: @x\n", 3),
        ("a: 1\nb\n", 5),
    ] {
        let composed = compose(text);
        assert_eq!(composed.findings.len(), 1, "{text}: {:?}", composed.findings);
        let finding = &composed.findings[0];
        assert_eq!(finding.code, Code::Syntax, "{text}");
        assert!(finding.remedy.is_some(), "{text}");
        assert!(finding.span.end <= text.len());
        assert_eq!(finding.span.start, start, "{text}: {}", finding.message);
    }
}

#[test]
fn paths_are_written_as_people_write_them() {
    let key = |name: &str| Step::Key(name.to_owned());
    assert_eq!(
        path_text(&[key("spec"), key("ports"), Step::Index(0), key("hostPort")]),
        "spec.ports[0].hostPort"
    );
    assert_eq!(path_text(&[key("labels"), key("a.b/c")]), "labels[\"a.b/c\"]");
}
