//! Hostile input: whatever comes in, admission ends, does not panic, and points inside the text.

use std::path::PathBuf;
use std::sync::LazyLock;

use proptest::prelude::*;
use schemas::keys::{Key, Root};
use schemas::{Input, Look, admit_all, admit_stored};

/// Every document of the corpus, as seeds for mutation.
static SEEDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut seeds = Vec::new();
    for verdict in ["good", "bad"] {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/corpus")
            .join(verdict);
        for entry in std::fs::read_dir(folder).expect("the folder is there") {
            let text = std::fs::read_to_string(entry.expect("the folder can be read").path()).expect("a text");
            seeds.extend(text.split("=====\n").map(str::to_owned));
        }
    }
    seeds.sort();
    seeds
});

fn survives(bytes: &[u8]) {
    let input = Input {
        file: Some("x.yaml"),
        bytes,
    };
    if let Err(problems) = admit_all(&[input]) {
        assert!(!problems.problems.is_empty());
        let text = String::from_utf8_lossy(bytes);
        let lines = text.split('\n').count();
        for problem in &problems.problems {
            let span = problem.span();
            assert!(span.start <= span.end && span.end <= text.len(), "{problem:?}");
            assert!(
                text.is_char_boundary(span.start) && text.is_char_boundary(span.end),
                "{problem:?}"
            );
            assert!(
                problem.line >= 1 && problem.line <= lines && problem.column >= 1,
                "{problem:?}"
            );
            assert!(
                (problem.end_line, problem.end_column) >= (problem.line, problem.column),
                "{problem:?}"
            );
            let line = text.split('\n').nth(problem.line - 1).unwrap_or_default();
            assert!(problem.column <= line.chars().count() + 1, "{problem:?}");
            assert!(problem.remedy.is_some(), "{problem:?}");
            assert!(
                !problem.message.contains('\u{1b}') && !problem.path.contains('\u{1b}'),
                "{problem:?}"
            );
            assert!(problem.line().len() < 2_000, "{problem:?}");
        }
        let places: Vec<_> = problems
            .problems
            .iter()
            .map(|problem| (problem.line, problem.column))
            .collect();
        assert!(places.is_sorted(), "{places:?}");
        assert!(!problems.render(Look::default()).contains('\u{1b}'));
        let _ = problems.render(Look { color: true, width: 0 });
    }
    let Some(Key::Desired(key)) = Root::default().parse(b"/reeve/desired/default/service/web") else {
        unreachable!()
    };
    let _ = admit_stored(&key, bytes);
}

/// Pieces that mean something to a YAML parser.
fn piece() -> impl Strategy<Value = String> {
    let words = [
        "apiVersion: reeve/v1\n",
        "kind: Service\n",
        "metadata:\n",
        "spec:\n",
        "container:\n",
        "image: x\n",
        "name: web\n",
        "  ",
        "\t",
        "- ",
        ": ",
        "? ",
        "&a ",
        "*a",
        "!!str ",
        "!x ",
        "| \n",
        ">-\n",
        "\"",
        "'",
        "[",
        "]",
        "{",
        "}",
        ",",
        "#",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "<<: *a\n",
        "\u{feff}",
        "\u{2028}",
        "\u{85}",
        "\0",
        "\r",
        "\n",
        "\r\n",
        "ä😀",
        "\\u0000",
        "\\x41",
        "0x",
        ".inf",
        "1e999",
        "~",
        "\u{1b}[31m",
        "\u{202e}",
        "@",
        "`",
        "<<",
        "=",
    ];
    prop_oneof![
        4 => proptest::sample::select(words.to_vec()).prop_map(str::to_owned),
        1 => "[ -~]{0,6}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        survives(&bytes);
    }

    #[test]
    fn random_pieces_of_yaml_do_no_harm(pieces in proptest::collection::vec(piece(), 0..60)) {
        survives(pieces.concat().as_bytes());
    }

    #[test]
    fn mutated_documents_do_no_harm(
        seed in any::<prop::sample::Index>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..12, piece()), 1..5),
    ) {
        let mut text = seed.get(&SEEDS).clone();
        for (at, removed, inserted) in edits {
            let mut start = at.index(text.len() + 1);
            while !text.is_char_boundary(start) {
                start -= 1;
            }
            let mut end = (start + removed).min(text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            text.replace_range(start..end, &inserted);
        }
        survives(text.as_bytes());
    }
}

#[test]
fn shapes_made_to_hurt_do_no_harm_and_end_soon() {
    let bomb = |levels: usize, width: usize| {
        let mut text = String::from("a0: &a0 x\n");
        for level in 1..levels {
            let inner = vec![format!("*a{}", level - 1); width].join(",");
            text.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
        }
        text
    };
    let lines = |line: &str| line.repeat((1 << 20) / line.len());
    let start = std::time::Instant::now();
    for text in [
        bomb(30, 10),
        bomb(60, 2),
        "[".repeat(1 << 20),
        "{a: ".repeat(1 << 18),
        "- ".repeat(1 << 19),
        "? ".repeat(1 << 19),
        "a:\n ".repeat(1 << 18),
        "&a ".repeat(1 << 18),
        "!!str ".repeat(1 << 17),
        "\"".repeat(1 << 20),
        "'".repeat((1 << 20) + 1),
        format!("a: \"{}", "\\u0041".repeat(1 << 17)),
        format!("a: {}", "x ".repeat(1 << 19)),
        format!("a: |\n{}", lines(" x\n")),
        lines("a: 1\n"),
        lines("- 1\n"),
        lines("a: [1\n"),
        lines("---\n"),
        lines("--- 'x\n"),
        lines("# x\n"),
        lines("\n"),
        lines("\t"),
        lines(" "),
        lines("a"),
        lines("%X y\n"),
        (0..20_000)
            .map(|n| format!("k{n}: &k{n} *k{}\n", n.max(1) - 1))
            .collect(),
        (0..40_000).map(|n| format!("key{n}: 1\n")).collect(),
        format!(
            "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n{}",
            lines("  x: 1\n")
        ),
        format!(
            "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{container: {{image: x, ports: [{}]}}}}",
            "{containerPort: 0},".repeat(30_000)
        ),
        format!(
            "apiVersion: reeve/v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{}}}",
            "a: {".repeat(60) + &"}".repeat(60)
        ),
    ] {
        let before = std::time::Instant::now();
        survives(text.as_bytes());
        let took = before.elapsed();
        if took.as_millis() > 1_000 {
            eprintln!("{took:?} for {:?}...", text.chars().take(60).collect::<String>());
        }
    }
    // Unoptimized, on a busy machine: what matters is that nothing is quadratic in a megabyte.
    assert!(start.elapsed().as_secs() < 120, "{:?}", start.elapsed());
}
