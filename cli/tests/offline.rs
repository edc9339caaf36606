//! The binary without a store: help, version, validate, explain, schema, completion, and what it says when something is
//! wrong, with the exit code of each.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn reeve(args: &[&str]) -> Output {
    let home = tempfile::tempdir().expect("a directory");
    command(args).env("HOME", home.path()).output().expect("reeve starts")
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reeve"));
    command
        .args(args)
        .env("NO_COLOR", "1")
        .env("COLUMNS", "80")
        .env_remove("XDG_DATA_HOME");
    for name in ["REEVE_ETCD", "REEVE_PREFIX", "REEVE_NAMESPACE", "REEVE_DATA_DIR"] {
        command.env_remove(name);
    }
    command
}

fn with_input(args: &[&str], input: &str) -> Output {
    let mut child = command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("reeve starts");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes())
        .expect("reeve reads its input");
    child.wait_with_output().expect("reeve ends")
}

fn text(output: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

const GOOD: &str = "apiVersion: reeve/v1
kind: Service
metadata:
  name: web
spec:
  container:
    image: nginx:1.27
";

#[test]
fn without_arguments_the_first_screen_shows_how_to_start() {
    let output = reeve(&[]);
    let (out, err) = text(&output);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        out.contains("reeve up") && out.contains("Usage: reeve") && out.contains("reeve --help"),
        "{out}"
    );
    assert_eq!(err, "");
    let (out, _) = text(&reeve(&["--help"]));
    assert!(out.contains("Exit codes") && out.contains("--etcd"), "{out}");
    assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
}

#[test]
fn every_verb_has_help_with_an_example() {
    let verbs: &[&[&str]] = &[
        &["init"],
        &["controller"],
        &["agent"],
        &["up"],
        &["apply"],
        &["plan"],
        &["get"],
        &["describe"],
        &["delete"],
        &["validate"],
        &["explain"],
        &["schema"],
        &["status"],
        &["events"],
        &["scale"],
        &["cordon"],
        &["uncordon"],
        &["drain"],
        &["node", "rm"],
        &["logs"],
        &["exec"],
        &["attach"],
        &["top"],
        &["cp"],
        &["port-forward"],
        &["admin", "ack"],
        &["admin", "accept-store"],
        &["admin", "remove-orphan"],
        &["admin", "migrate-store"],
        &["completion"],
    ];
    for verb in verbs {
        let args: Vec<&str> = verb.iter().copied().chain(["--help"]).collect();
        let output = reeve(&args);
        let (out, _) = text(&output);
        assert_eq!(output.status.code(), Some(0), "{verb:?}");
        assert!(out.contains("Example: reeve "), "{verb:?}: {out}");
    }
}

#[test]
fn the_version_is_for_people_and_for_machines() {
    assert_eq!(
        text(&reeve(&["version"])).0,
        format!("reeve {}\n", env!("CARGO_PKG_VERSION"))
    );
    let (out, _) = text(&reeve(&["version", "-o", "json"]));
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value["apiVersion"], "reeve/v1");
}

#[test]
fn valid_documents_are_counted() {
    let output = with_input(
        &["validate", "-f", "-"],
        &format!("{GOOD}---\n{}", GOOD.replace("web", "api")),
    );
    assert_eq!(text(&output), ("2 documents are valid\n".to_owned(), String::new()));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn every_problem_is_told_at_once_with_its_place_and_a_remedy() {
    let bad = GOOD
        .replace("    image: nginx:1.27", "    imge: nginx:1.27")
        .replace("spec:", "spec:\n  replicas: two");
    let output = with_input(&["validate", "-f", "-"], &bad);
    let (out, err) = text(&output);
    assert_eq!(output.status.code(), Some(9), "{err}");
    assert_eq!(out, "");
    assert!(
        err.contains("did you mean `image`?") && err.contains("replicas"),
        "{err}"
    );
    assert!(err.lines().all(|line| line.chars().count() <= 80), "{err}");

    let output = with_input(&["validate", "-f", "-", "-o", "json"], &bad);
    let (out, err) = text(&output);
    assert_eq!((output.status.code(), err.as_str()), (Some(9), ""));
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let problems = value["error"]["problems"].as_array().expect("a list");
    assert!(problems.len() >= 2, "{out}");
    assert_eq!(problems[0]["line"], 6, "{out}");
}

#[test]
fn directories_are_read_by_name_and_files_that_are_not_there_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().display().to_string();
    let output = reeve(&["validate", "-f", &path]);
    assert_eq!(output.status.code(), Some(2));
    for (name, text) in [
        ("a.yaml", GOOD.to_owned()),
        ("b.json", GOOD.replace("web", "api")),
        ("notes.txt", "x".to_owned()),
    ] {
        std::fs::write(dir.path().join(name), text).expect("a file");
    }
    let output = reeve(&["validate", "-f", &path, "-o", "name"]);
    assert_eq!(text(&output).0, "service/web\nservice/api\n");
    let output = reeve(&["validate", "-f", "/no/such/file.yaml"]);
    let (_, err) = text(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        err.starts_with("error: cannot read /no/such/file.yaml: No such file or directory"),
        "{err}"
    );
}

#[test]
fn a_document_of_another_namespace_than_asked_for_is_refused() {
    let input = GOOD.replace("name: web", "name: web\n  namespace: prod");
    let output = with_input(&["validate", "-f", "-", "-n", "test"], &input);
    assert_eq!(output.status.code(), Some(2), "{:?}", text(&output));
}

#[test]
fn keys_are_explained_and_typing_errors_noticed() {
    let output = reeve(&["explain", "service.spec.container.ports"]);
    let (out, _) = text(&output);
    assert_eq!(output.status.code(), Some(0));
    assert!(out.contains("hostPort"), "{out}");
    let output = reeve(&["explain", "service.spec.contaner"]);
    let (_, err) = text(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(err.contains("did you mean `container`?"), "{err}");
}

#[test]
fn schemas_are_printed_by_kind() {
    for kind in ["service", "no", "all"] {
        let (out, _) = text(&reeve(&["schema", kind]));
        let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(
            value["$schema"], "https://json-schema.org/draft/2020-12/schema",
            "{kind}"
        );
    }
    assert_eq!(reeve(&["schema", "gadget"]).status.code(), Some(2));
}

#[test]
fn completion_scripts_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let (out, _) = text(&reeve(&["completion", shell]));
        assert!(out.contains("apply"), "{shell}");
    }
}

#[test]
fn a_wrong_command_line_is_usage() {
    for args in [
        &["frobnicate"] as &[&str],
        &["apply"],
        &["get"],
        &["get", "gadgets"],
        &["delete", "service"],
        &["scale", "web"],
        &["scale", "web=many"],
        &["scale", "web=3", "--replicas", "3"],
        &["cordon", "17"],
        &["get", "services", "-l", "a b"],
        &["validate", "-f", "x", "--timeout", "soon"],
        &["--cert", "x", "get", "services"],
        &["describe", "service"],
        &["delete", "instances", "web.1"],
    ] {
        let output = reeve(args);
        let (out, err) = text(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
        assert!(out.is_empty() && err.starts_with("error: "), "{args:?}: {err}");
    }
}

#[test]
fn a_store_that_cannot_be_reached_is_one_sentence_and_a_remedy() {
    // Port 1 of loopback: nothing listens there.
    let output = reeve(&["get", "services", "--etcd", "http://127.0.0.1:1"]);
    let (out, err) = text(&output);
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert_eq!(out, "");
    assert!(err.contains("127.0.0.1:1") && err.lines().count() == 2, "{err}");
    assert!(
        err.lines().last().is_some_and(|line| line.starts_with("help: ")),
        "{err}"
    );

    let output = reeve(&["get", "services", "--etcd", "http://127.0.0.1:1", "-o", "json"]);
    let (_, err) = text(&output);
    let value: serde_json::Value = serde_json::from_str(&err).expect("errors are JSON for machines");
    assert_eq!(
        (&value["error"]["exitCode"], &value["error"]["reason"]),
        (&3.into(), &"Unreachable".into())
    );
}

#[test]
fn wrong_tls_files_and_schemes_are_told_by_their_flag_before_anything_is_connected_to() {
    let dir = tempfile::tempdir().expect("a directory");
    let not_pem = dir.path().join("not.pem").display().to_string();
    std::fs::write(&not_pem, "der").expect("a file");
    let url = "https://127.0.0.1:1";
    for (args, says) in [
        (&["--etcd", url] as &[&str], "https:// needs --ca"),
        (&["--etcd", "ftp://127.0.0.1:1"], "`ftp` is no scheme"),
        (
            &["--etcd", url, "--ca", "/no/such"],
            "--ca: cannot read /no/such: No such file",
        ),
        (&["--etcd", url, "--ca", &not_pem], "holds no certificate in PEM"),
        (&["--etcd", ","], "names no endpoint"),
    ] {
        let args: Vec<&str> = ["get", "services"].iter().chain(args).copied().collect();
        let output = reeve(&args);
        let (_, err) = text(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
        assert!(err.contains(says), "{args:?}: {err}");
    }
}

#[test]
fn what_answers_and_is_not_etcd_is_one_sentence() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let output = reeve(&["get", "services", "--etcd", &url]);
    let (_, err) = text(&output);
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(
        err.lines().count() == 2 && err.lines().all(|line| line.len() < 160),
        "{err}"
    );
}

#[test]
fn the_store_of_a_running_up_is_found_through_its_data_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("endpoint"), "http://127.0.0.1:2\n").expect("a file");
    let output = reeve(&["get", "services", "--data-dir", &dir.path().display().to_string()]);
    let (_, err) = text(&output);
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(err.contains("127.0.0.1:2") && err.contains("reeve up"), "{err}");
}

#[test]
fn a_command_line_that_is_wrong_is_told_as_json_where_json_is_asked_for() {
    for (args, word) in [
        (vec!["get", "services", "--wide", "-o", "json"], "--wide"),
        (vec!["-ojson", "scale"], "SERVICE"),
        (vec!["--output=json", "gett"], "gett"),
        (vec!["drain", "-o=json", "n1", "--timeout", "soon"], "soon"),
        (vec!["admin", "-o", "json"], "subcommand"),
    ] {
        let output = reeve(&args);
        let (out, err) = text(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
        assert_eq!(out, "", "{args:?}");
        let told: serde_json::Value =
            serde_json::from_str(&err).unwrap_or_else(|error| panic!("{args:?}: {error}: {err}"));
        assert_eq!(told["error"]["reason"], "Usage", "{err}");
        assert_eq!(told["error"]["exitCode"], 2, "{err}");
        assert!(err.contains(word), "{args:?}: {err}");
        assert!(told["error"]["help"].is_string(), "{err}");
    }
    // For people as ever; and help is no error.
    let (_, err) = text(&reeve(&["get", "--wide"]));
    assert!(
        err.starts_with("error: unexpected argument") && err.contains("Usage:"),
        "{err}"
    );
    let (out, _) = text(&reeve(&["get", "-o", "json", "--help"]));
    assert!(out.contains("Usage:"), "{out}");
    // What follows `--` asks for nothing.
    let (_, err) = text(&reeve(&["version", "--", "-o", "json"]));
    assert!(err.starts_with("error: "), "{err}");
}
