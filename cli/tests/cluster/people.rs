//! People at terminals: prompts answered with yes, no, nothing and Ctrl-C, and two people who change one thing at once.
//! `script` (bsdutils, part of every Debian) gives each command a terminal of its own.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use runtime::{EtcdStore, Guard, Store, person};
use tempfile::TempDir;

struct Lab {
    endpoint: String,
    dir: TempDir,
    store: EtcdStore,
    runtime: Option<tokio::runtime::Runtime>,
}

const WEB: &str = "apiVersion: reeve/v1
kind: Service
metadata:
  name: web
spec:
  container:
    image: nginx:1
";

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (endpoint, store, runtime) = crate::common::serve(dir.path());
        let lab = Self {
            endpoint,
            dir,
            store,
            runtime: Some(runtime),
        };
        assert!(lab.run(&["init"]).status.success());
        lab
    }

    fn environment(&self, command: &mut Command) {
        command
            .env("NO_COLOR", "1")
            .env("HOME", self.dir.path())
            .env("REEVE_ETCD", &self.endpoint)
            .env("TERM", "xterm")
            .env_remove("COLUMNS")
            .env_remove("REEVE_NAMESPACE");
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reeve"));
        self.environment(&mut command);
        command.args(args).output().expect("reeve starts")
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    fn apply(&self, text: &str) -> String {
        let file = self.file("web.yaml", text);
        let output = self.run(&["apply", "-f", &file, "--no-wait", "--yes"]);
        assert!(output.status.success(), "{}", words(&output));
        file
    }

    fn put(&self, key: &str, value: &str) {
        let txn = person::txn().put(key, value.as_bytes().to_vec(), Guard::Any);
        let outcome = self.on(self.store.commit(txn)).expect("a write");
        assert!(matches!(outcome, runtime::Outcome::Committed { .. }), "{outcome:?}");
    }

    fn value(&self, key: &str) -> Option<String> {
        let read = self.on(self.store.get(key.as_bytes())).expect("a read");
        read.value.map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
    }

    fn on<F: Future>(&self, future: F) -> F::Output {
        self.runtime
            .as_ref()
            .expect("the runtime ends with the lab")
            .block_on(future)
    }

    /// A command on a terminal of 80 columns.
    fn terminal(&self, args: &[&str]) -> Terminal {
        let quoted: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
        let line = format!(
            "stty cols 80 rows 24; exec {} {}",
            env!("CARGO_BIN_EXE_reeve"),
            quoted.join(" ")
        );
        let mut command = Command::new("script");
        self.environment(&mut command);
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("script starts: it is in Debian's bsdutils");
        let mut out = child.stdout.take().expect("a pipe");
        let (send, shown) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut some) {
                if send.send(String::from_utf8_lossy(&some[..n]).into_owned()).is_err() {
                    return;
                }
            }
        });
        Terminal {
            child,
            shown,
            screen: String::new(),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Terminal {
    child: Child,
    shown: std::sync::mpsc::Receiver<String>,
    screen: String,
}

impl Terminal {
    fn until(&mut self, word: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.screen.contains(word) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(text) => self.screen.push_str(&text),
                Err(_) => panic!("`{word}` is not shown: {}", self.screen),
            }
        }
    }

    fn types(&mut self, keys: &str) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin
            .write_all(keys.as_bytes())
            .and_then(|()| stdin.flush())
            .expect("the terminal takes keys");
    }

    /// How it ended, and all that was shown.
    fn ends(mut self) -> (Option<i32>, String) {
        while let Ok(text) = self.shown.recv_timeout(Duration::from_secs(20)) {
            self.screen.push_str(&text);
        }
        let code = self.child.wait().expect("script ends").code();
        (code, std::mem::take(&mut self.screen))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn words(output: &Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{}{err}", String::from_utf8_lossy(&output.stdout))
}

const KEY: &str = "/reeve/desired/default/service/web";

#[test]
fn only_a_yes_is_a_yes() {
    let lab = Lab::new();
    lab.apply(WEB);
    for (keys, code) in [("n\n", 6), ("\n", 6), ("nonsense\n", 6), ("\u{4}", 6), ("\u{3}", 130)] {
        let mut terminal = lab.terminal(&["delete", "service", "web"]);
        terminal.until("[y/N] ");
        terminal.types(keys);
        let (ended, shown) = terminal.ends();
        assert_eq!(ended, Some(code), "{keys:?}: {shown}");
        assert!(lab.value(KEY).is_some(), "{keys:?}: {shown}");
    }
    let mut terminal = lab.terminal(&["delete", "service", "web", "--no-wait"]);
    terminal.until("[y/N] ");
    terminal.types("y\n");
    let (ended, shown) = terminal.ends();
    assert_eq!(ended, Some(0), "{shown}");
    assert_eq!(lab.value(KEY), None, "{shown}");
}

#[test]
fn what_somebody_else_changed_while_the_question_stood_is_not_written_over() {
    let lab = Lab::new();
    lab.apply(WEB);
    let mut terminal = lab.terminal(&["delete", "service", "web", "--no-wait"]);
    terminal.until("[y/N] ");
    lab.apply(&WEB.replace("nginx:1", "nginx:2"));
    terminal.types("y\n");
    let (ended, shown) = terminal.ends();
    assert_eq!(ended, Some(4), "{shown}");
    // Lines are folded between words: seen as one.
    let text = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        text.contains("service/web was changed meanwhile") && text.contains("nothing was written"),
        "{shown}"
    );
    assert!(
        shown.lines().all(|line| line.trim_end().chars().count() <= 80),
        "{shown}"
    );
    assert!(lab.value(KEY).is_some_and(|text| text.contains("nginx:2")));
}

#[test]
fn a_cluster_that_changed_while_the_question_stood_is_not_written_to() {
    let lab = Lab::new();
    lab.apply(WEB);
    let mut terminal = lab.terminal(&["delete", "service", "web", "--no-wait"]);
    terminal.until("[y/N] ");
    let marker = lab.value("/reeve/cluster").expect("a marker");
    lab.put("/reeve/cluster", &marker);
    terminal.types("y\n");
    let (ended, shown) = terminal.ends();
    assert_eq!(ended, Some(4), "{shown}");
    assert!(lab.value(KEY).is_some(), "{shown}");
}

#[test]
fn of_two_people_who_apply_at_once_one_wins_and_the_other_is_told() {
    let lab = Lab::new();
    lab.apply(WEB);
    for round in 0..3 {
        let before = lab.run(&["get", "service", "web", "-o", "json"]);
        let before: serde_json::Value = serde_json::from_slice(&before.stdout).expect("JSON");
        let revision = before["metadata"]["resourceVersion"]
            .as_str()
            .expect("a revision")
            .to_owned();
        let files: Vec<String> = (0..6)
            .map(|n| {
                lab.file(
                    &format!("{n}.yaml"),
                    &WEB.replace("nginx:1", &format!("nginx:{round}-{n}")),
                )
            })
            .collect();
        let outputs: Vec<Output> = std::thread::scope(|scope| {
            let lab = &lab;
            let run = |file: &String| {
                let (file, revision) = (file.clone(), revision.clone());
                scope.spawn(move || lab.run(&["apply", "-f", &file, "--no-wait", "--if-revision", &revision]))
            };
            let running: Vec<_> = files.iter().map(run).collect();
            running.into_iter().map(|run| run.join().expect("reeve ends")).collect()
        });
        let codes: Vec<Option<i32>> = outputs.iter().map(|output| output.status.code()).collect();
        let won: Vec<usize> = (0..6).filter(|n| codes[*n] == Some(0)).collect();
        assert_eq!(won.len(), 1, "{codes:?}");
        assert!(codes.iter().all(|code| matches!(code, Some(0 | 4))), "{codes:?}");
        let stored = lab.value(KEY).expect("a document");
        assert!(stored.contains(&format!("nginx:{round}-{}\"", won[0])), "{stored}");
        for output in outputs.iter().filter(|output| !output.status.success()) {
            let text = words(output);
            assert!(
                text.contains("service/web") && text.contains("nothing was written"),
                "{text}"
            );
        }
    }
}
