//! The project's pages against its sources: metrics, keys, limits; and laws that are about who may call what. The page of
//! metrics is generated: `REEVE_UPDATE=1 cargo test -p cli --test pages`.

#![allow(clippy::wildcard_enum_match_arm)] // What a test does not name is not what it looks for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust sources of a crate, tests in their own files left out.
fn sources(krate: &str) -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(dir).expect("a directory of the project") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&project().join(krate).join("src"), &mut found);
    assert!(!found.is_empty(), "{krate} has no sources");
    found.sort();
    found
}

fn page(name: &str) -> String {
    std::fs::read_to_string(project().join("docs").join(name)).unwrap_or_default()
}

/// Law 4: one writer per key. What writes as a person is for verbs.
#[test]
fn neither_controllers_nor_agents_write_as_a_person() {
    for krate in ["controller", "agent"] {
        for (path, text) in sources(krate) {
            // What stands in a test may play a person.
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let in_tests = path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
            let named = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in named.filter(|_| !in_tests) {
                let word = line.contains("person::") || line.contains("::person") || line.contains("person,");
                assert!(!word, "{} writes as a person: {line}", path.display());
            }
        }
    }
}

/// The lines of code of a crate that are not in tests, with where they are.
fn code(krate: &str) -> Vec<(PathBuf, String)> {
    let mut lines = Vec::new();
    for (path, text) in sources(krate) {
        if path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let said = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.extend(said.map(|line| (path.clone(), line.to_owned())));
    }
    lines
}

/// Law 9: data is never removed by reconciliation.
#[test]
fn no_call_to_an_engine_removes_a_volume() {
    let mut removals = 0;
    for (path, line) in code("agent") {
        let word = [
            "remove_volume",
            "prune_volumes",
            "/volumes",
            "RemoveVolumeOptions",
            "PruneVolumesOptions",
            "v: true",
        ];
        assert!(
            !word.iter().any(|word| line.contains(word)),
            "{}: {line}",
            path.display()
        );
        removals += usize::from(line.contains("v: false"));
    }
    assert_eq!(removals, 1, "a container is removed in one place, without its volumes");
}

/// Law 13: no decision compares the clocks of two machines. What decides is told the time, and cannot ask for it.
#[test]
fn what_decides_reads_no_clock() {
    for krate in ["planner", "schemas"] {
        for (path, line) in code(krate) {
            let word = ["Instant", "SystemTime", "jiff", "chrono", "clock_gettime", "boottime"];
            assert!(
                !word.iter().any(|word| line.contains(word)),
                "{}: {line}",
                path.display()
            );
        }
    }
}

/// The words between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What each law's row of ARCHITECTURE.md lacks: files that are not there, tests that are not in them, laws without any.
fn untrue_rows(page: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let laws = (1..=17).map(|law| law.to_string());
    for law in laws.chain((1..=5).map(|promise| format!("N{promise}"))) {
        let begins = format!("| {law} ");
        let Some(row) = page.lines().find(|line| line.starts_with(&begins)) else {
            wrong.push(format!("law {law} has no row"));
            continue;
        };
        let mut file: Option<(&str, String)> = None;
        let mut tests = 0;
        for word in quoted(row) {
            if word.ends_with(".rs") {
                file = read(word).map(|text| (word, text));
                if file.is_none() {
                    wrong.push(format!("law {law}: there is no {word}"));
                }
            } else if let Some((name, text)) = &file {
                tests += 1;
                let tested = text
                    .split(&format!("fn {word}"))
                    .skip(1)
                    .any(|rest| rest.starts_with(['(', '<']));
                if !tested {
                    wrong.push(format!("law {law}: {name} has no test {word}"));
                }
            }
        }
        if tests == 0 {
            wrong.push(format!("law {law} names no test"));
        }
    }
    wrong
}

#[test]
fn each_law_names_tests_that_exist() {
    let page = std::fs::read_to_string(project().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let read = |name: &str| std::fs::read_to_string(project().join(name)).ok();
    assert_eq!(untrue_rows(&page, read), Vec::<String>::new());
    // And what is not true is found.
    let renamed = |name: &str| read(name).map(|text| text.replace("fn absence_is_never_an_order(", "fn other("));
    assert_eq!(untrue_rows(&page, renamed).len(), 2);
    let without = page.replace("| 9 ", "| nine ");
    assert_eq!(untrue_rows(&without, read), ["law 9 has no row"]);
}

/// Each metric with its help, as the sources register it: a name, and the next text after it.
fn metrics(krate: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (_, text) in sources(krate) {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let mut texts = code.split('"').skip(1).step_by(2);
        while let Some(text) = texts.next() {
            let name = text.starts_with("reeve_") && text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if name && let Some(help) = texts.next() {
                found.insert(text.to_owned(), help.to_owned());
            }
        }
    }
    found
}

fn metrics_page() -> (String, Vec<String>) {
    let mut page = "# Metrics\n\nGenerated by `REEVE_UPDATE=1 cargo test -p cli --test pages`; a test keeps it current. Controllers serve \
`/metrics`, `/healthz`, `/readyz` and `/sd`\n(Prometheus HTTP discovery of itself and all agents) on `127.0.0.1:9463`, agents the first three on \
`127.0.0.1:9464`; `--metrics` moves them.\nRules are in [rules.yaml](../manifests/prometheus/rules.yaml).\n"
        .to_owned();
    let mut names = Vec::new();
    let notes = [
        (
            "controller",
            "Controllers",
            "What is about services, nodes and the breaker is told by the leader only.",
        ),
        (
            "agent",
            "Agents",
            "What is about instances has the labels `namespace`, `workload` and `slot`.",
        ),
    ];
    for (krate, title, note) in notes {
        page.push_str(&format!(
            "\n## {title}\n\n{note}\n\n| metric | what it is |\n|---|---|\n"
        ));
        for (name, help) in metrics(krate) {
            page.push_str(&format!("| `{name}` | {help} |\n"));
            names.push(name);
        }
    }
    (page, names)
}

#[test]
fn the_page_of_metrics_is_current_and_rules_and_dashboards_name_what_exists() {
    let (wanted, names) = metrics_page();
    assert!(names.len() > 40, "{names:?}");
    if std::env::var_os("REEVE_UPDATE").is_some() {
        std::fs::write(project().join("docs/metrics.md"), &wanted).expect("docs/metrics.md is written");
    }
    let current = page("metrics.md") == wanted;
    assert!(
        current,
        "docs/metrics.md is old: run REEVE_UPDATE=1 cargo test -p cli --test pages"
    );
    for file in ["manifests/prometheus/rules.yaml", "manifests/grafana/reeve.json"] {
        let text = std::fs::read_to_string(project().join(file)).expect("a file of the project");
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        for word in words.filter(|word| word.starts_with("reeve_")) {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| word.strip_suffix(end))
                .unwrap_or(word);
            let known = names.iter().any(|name| name == base || name == word);
            assert!(known, "{file} names `{word}`, which nobody serves");
        }
    }
}

/// What somebody reads at night: there is a section for each alarm, and the verbs that it tells are there.
#[test]
fn the_page_of_alarms_has_each_alarm_and_tells_verbs_that_exist() {
    let read = |path: &str| std::fs::read_to_string(project().join(path)).expect(path);
    let rules = read("manifests/prometheus/rules.yaml");
    let alarms = page("alarms.md");
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    let mut sections: Vec<&str> = alarms.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut expected = alerts.clone();
    expected.sort_unstable();
    sections.sort_unstable();
    assert_eq!(sections, expected);
    let commands = page("commands.md");
    let known = |line: &str| commands.lines().any(|other| other == line);
    let words: Vec<&str> = alarms
        .split(['`', '\n'])
        .filter(|text| text.starts_with("reeve "))
        .collect();
    let rules = rules.split("reeve ").skip(1).map(|rest| format!("reeve {rest}"));
    let told: Vec<String> = words.iter().map(|text| (*text).to_owned()).chain(rules).collect();
    for text in &told {
        let mut parts = text.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
        let (_, verb, sub) = (
            parts.next(),
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let one = known(&format!("## reeve {verb}")) || known(&format!("## reeve {verb} {sub}"));
        assert!(one, "`{text}` is no command");
    }
    assert!(told.len() > 20, "{told:?}");
}

#[test]
fn the_page_of_keys_names_every_key() {
    use schemas::keys::{Key, Root};
    let page = page("keys-and-files.md");
    let node = || "n1".parse().expect("a name");
    let resource = || {
        let key = Root::default().parse(b"/reeve/desired/default/service/web");
        match key.expect("a key") {
            Key::Desired(resource) => resource,
            other => panic!("{other:?}"),
        }
    };
    let keys = [
        Key::Cluster,
        Key::Desired(resource()),
        Key::Status(resource()),
        Key::Accepted(resource(), 1),
        Key::Assignment(node()),
        Key::Verdict(node()),
        Key::Cordon(node()),
        Key::Ack("x".to_owned()),
        Key::Breaker,
        Key::Node(node()),
        Key::Report(node()),
        Key::Session(node()),
        Key::Election,
        Key::Controller("x".to_owned()),
        Key::Event("default/1".to_owned()),
        Key::Blob(schemas::config_file::FileDigest::of(b""), 0),
        Key::Sealed(resource()),
        Key::Handed("node.n1".to_owned()),
        Key::Audit("person.anna".to_owned(), "1".to_owned()),
        Key::Peer(node()),
        Key::Endpoints(resource()),
        Key::Policies("default".parse().expect("a name")),
        Key::Own("default".parse().expect("a name"), "x".to_owned()),
    ];
    for key in keys {
        let whole = Root::default().key(&key);
        let class = whole
            .strip_prefix("/reeve/")
            .and_then(|rest| rest.split('/').next())
            .unwrap_or_default()
            .to_owned();
        let (whole, named) = (format!("| `{class}` |"), format!("| `{class}/"));
        assert!(
            page.contains(&whole) || page.contains(&named),
            "docs/keys-and-files.md does not name `{class}`"
        );
    }
}

#[test]
fn the_page_of_limits_says_what_the_sources_say() {
    let page = page("limits.md");
    let mut checked = 0;
    for line in page.lines().filter(|line| line.starts_with('|')) {
        let Some(constants) = line.trim_end_matches('|').rsplit('|').next() else {
            continue;
        };
        let mut texts = constants.split('`').skip(1).step_by(2);
        while let Some(krate) = texts.next() {
            let constant = texts
                .next()
                .unwrap_or_else(|| panic!("`{krate}` names no constant: {line}"));
            let (name, value) = constant
                .split_once(" = ")
                .unwrap_or_else(|| panic!("no value: {constant}"));
            let declared = |line: &str| {
                line.contains(&format!("const {name}:")) && line.trim_end().ends_with(&format!("= {value};"))
            };
            let found = sources(krate).iter().any(|(_, text)| text.lines().any(declared));
            assert!(found, "{krate} has no constant `{name}` that is {value}");
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked}");
}
