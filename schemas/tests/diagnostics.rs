//! Diagnostics as people see them on 80 columns: each `diagnostics/NAME.yaml` gives `NAME.txt`. To write the texts anew:
//! `REEVE_UPDATE=1 cargo nextest run -p schemas diagnostics`, and read the difference.

use std::path::PathBuf;

use schemas::admit::admit;
use schemas::problem::Look;

#[test]
fn diagnostics_look_as_they_did() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/diagnostics");
    let update = std::env::var_os("REEVE_UPDATE").is_some();
    let mut inputs: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 12, "only {} diagnostics", inputs.len());
    let mut wrong = Vec::new();
    for input in inputs {
        let text = std::fs::read_to_string(&input).expect("the input can be read");
        let name = input
            .file_name()
            .expect("a file has a name")
            .to_string_lossy()
            .into_owned();
        let problems = admit(&text, Some(&name)).expect_err(&name);
        let shown = problems.render(Look::default());
        for line in shown.lines() {
            assert!(line.chars().count() <= 80, "{name}: wider than 80 columns: {line}");
        }
        let golden = input.with_extension("txt");
        if update {
            std::fs::write(&golden, &shown).expect("the text can be written");
        }
        if std::fs::read_to_string(&golden).unwrap_or_default() != shown {
            wrong.push(format!("{name} now gives\n{shown}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nREEVE_UPDATE=1 writes them anew",
        wrong.join("\n")
    );
}
