//! The command line against itself, against every text of the project that names a command, and against its page in docs/.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};

use super::*;

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn durations_and_labels_are_read_as_in_manifests() {
    assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
    assert!(duration("soon").is_err());
    assert_eq!(label("zone=a=b"), Ok(("zone".to_owned(), "a=b".to_owned())));
    assert!(label("zone").is_err());
}

#[test]
fn the_first_screen_fits_a_terminal_of_80_by_24() {
    assert!(START.lines().count() <= 23, "{} lines", START.lines().count());
    assert!(START.lines().all(|line| line.chars().count() < 80));
    for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let named = START.split_whitespace().any(|word| word == verb.get_name());
        assert!(named, "`{}` is not on the first screen", verb.get_name());
    }
}

#[test]
fn no_line_of_help_is_wider_than_a_terminal_of_80() {
    fn look(verb: &mut Command, name: &str) {
        for text in [verb.render_long_help(), verb.render_help()] {
            for line in text.to_string().lines() {
                assert!(line.chars().count() <= 80, "reeve {name}: {line}");
            }
        }
        for sub in verb.get_subcommands_mut() {
            let name = format!("{name} {}", sub.get_name());
            look(sub, &name);
        }
    }
    let mut all = Cli::command();
    all.build();
    look(&mut all, "");
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The texts of the project: sources, documents, manifests, scripts.
fn texts(dir: &Path, found: &mut Vec<PathBuf>) {
    const KINDS: &[&str] = &["rs", "md", "yaml", "sh", "service", "json", "conf"];
    let entries = std::fs::read_dir(dir).expect("a directory of the project");
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            texts(&path, found);
        } else if path.is_file() && (KINDS.contains(&kind.as_str()) || name == "Makefile") {
            found.push(path);
        }
    }
}

/// What stands after `reeve ` where a command is meant: in backquotes, or at the beginning of a line of code.
fn mentions(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        for (at, _) in line.match_indices("reeve ") {
            let before = &line[..at];
            let rest = &line[at + "reeve ".len()..];
            let quoted = before.ends_with('`');
            // Also in the middle of a sentence, where a verb of ours follows.
            let begins = before
                .trim_start_matches(['/', '!', '$', '#', ' ', '"', '\\', '|'])
                .is_empty()
                || before.ends_with(": ")
                || before.ends_with("next: ");
            if quoted || begins {
                found.push(rest.split('`').next().unwrap_or_default().to_owned());
            }
        }
    }
    found
}

/// The command that the words begin with, and the words left.
fn resolve<'a>(root: &'a Command, words: &[&str]) -> Result<(&'a Command, usize), String> {
    let mut command = root;
    let mut at = 0;
    while command.has_subcommands() {
        let Some(word) = words.get(at) else { break };
        match command.find_subcommand(word) {
            Some(found) => command = found,
            None => return Err((*word).to_owned()),
        }
        at += 1;
    }
    Ok((command, at))
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(|c| c.is_ascii_lowercase() || c == '-')
}

#[test]
fn every_command_that_a_text_of_the_project_names_exists() {
    // Words that follow the name of the program in sentences about it.
    const SENTENCES: &[&str] = &[
        "starts", "binary", "ended", "ends", "reads", "wrote", "and", "that", "is",
    ];
    let mut files = Vec::new();
    texts(&project(), &mut files);
    assert!(
        files.len() > 100,
        "the project's texts are not found from {}",
        project().display()
    );
    let root = Cli::command();
    let mut wrong = Vec::new();
    let mut right = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a text of the project");
        for mention in mentions(&text) {
            let tokens: Vec<&str> = mention.split_whitespace().collect();
            let clean = |token: &&str| token.trim_end_matches([',', ';', ':', '.', ')', '"', '\\']).to_owned();
            let words: Vec<String> = tokens.iter().map(clean).take_while(|token| is_word(token)).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let Some(first) = words.first() else { continue };
            if SENTENCES.contains(first) {
                continue;
            }
            let command = match resolve(&root, &words) {
                Ok((command, _)) => command,
                Err(word) => {
                    wrong.push(format!("{}: `reeve {mention}`: no `{word}`", file.display()));
                    continue;
                }
            };
            right += 1;
            let known = |flag: &str| {
                let of = |command: &Command| command.get_arguments().any(|arg| arg.get_long() == Some(flag));
                flag.is_empty() || flag == "help" || of(command) || of(&root)
            };
            // What follows `--` is another program's.
            for token in tokens.iter().take_while(|token| **token != "--") {
                let Some(flag) = token.strip_prefix("--") else { continue };
                let flag: String = flag
                    .chars()
                    .take_while(|c| c.is_ascii_lowercase() || *c == '-')
                    .collect();
                if !known(&flag) {
                    wrong.push(format!("{}: `reeve {mention}`: no --{flag}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "commands that do not exist:\n{}", wrong.join("\n"));
    assert!(right > 80, "only {right} commands were found in the texts");
}

fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

fn options(page: &mut String, command: &Command, global: bool) {
    let shown = |arg: &&clap::Arg| {
        arg.is_global_set() == global && !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version"
    };
    let mut lines = Vec::new();
    for arg in command.get_arguments().filter(shown) {
        let names: Vec<String> = arg
            .get_value_names()
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect();
        let value = if arg.get_action().takes_values() && !arg.is_positional() {
            format!(" {}", names.join(" "))
        } else {
            String::new()
        };
        let name = match (arg.get_short(), arg.get_long()) {
            (Some(short), Some(long)) => format!("-{short}, --{long}{value}"),
            (None, Some(long)) => format!("--{long}{value}"),
            (Some(short), None) => format!("-{short}{value}"),
            (None, None) => names.join(" "),
        };
        let help = arg
            .get_help()
            .map(|help| one_line(&help.to_string()))
            .unwrap_or_default();
        let env = arg
            .get_env()
            .map(|env| format!(" (`{}`)", env.to_string_lossy()))
            .unwrap_or_default();
        let default: Vec<String> = arg
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy().into_owned())
            .filter(|_| arg.get_action().takes_values())
            .collect();
        let default = if default.is_empty() {
            String::new()
        } else {
            format!(" Default: `{}`.", default.join(","))
        };
        let stop = if help.is_empty() || help.ends_with(']') {
            ""
        } else {
            "."
        };
        lines.push(format!("| `{name}` | {help}{env}{stop}{default} |"));
    }
    if !lines.is_empty() {
        let _ = writeln!(page, "\n| option | what it does |\n|---|---|\n{}", lines.join("\n"));
    }
}

fn section(page: &mut String, path: &str, command: &Command) {
    if command.has_subcommands() {
        for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
            section(page, &format!("{path} {}", verb.get_name()), verb);
        }
        return;
    }
    let about = command
        .get_about()
        .map(|about| one_line(&about.to_string()))
        .unwrap_or_default();
    let _ = writeln!(page, "\n## {path}\n\n{about}.");
    if let Some(after) = command.get_after_help() {
        let _ = writeln!(page, "\n```text\n{after}\n```");
    }
    options(page, command, false);
}

/// docs/commands.md, from what clap knows.
fn page() -> String {
    let root = Cli::command();
    let mut page = "# Commands\n\nGenerated from `cli/src/args.rs` by `REEVE_UPDATE=1 cargo test -p cli commands`; a test keeps it current. \
`reeve COMMAND --help` says the same.\n\nExit codes: 0 done, 1 differences found (`plan --exit-code`), 2 usage, 3 the store is unreachable, 4 conflict, \
6 failed,\n7 no node fits, 9 a document is invalid, 124 timed out. With `-o json` errors are JSON, too.\n\n## Options of every command\n"
        .to_owned();
    options(&mut page, &root, true);
    for verb in root.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        section(&mut page, &format!("reeve {}", verb.get_name()), verb);
    }
    page
}

#[test]
fn the_page_of_commands_is_current() {
    let path = project().join("docs/commands.md");
    let page = page();
    if std::env::var_os("REEVE_UPDATE").is_some() {
        std::fs::write(&path, &page).expect("docs/commands.md is written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/commands.md is old: run REEVE_UPDATE=1 cargo test -p cli commands"
    );
}
