//! `reeve secret` against a whole cluster in this process: what a person sees of a secret's life, and that nobody sees the
//! value.

use std::io::Write as _;
use std::process::Stdio;

use crate::lab::Lab;
use runtime::{Prefix, Store};

const VALUES: [&str; 2] = ["hunter2-canary", "hunter3-canary"];

const WEB: &str = "apiVersion: reeve/v1
kind: Service
metadata: {name: web}
spec:
  replicas: 2
  container:
    image: nginx:1
    secrets:
      - {secret: db-password}
      - {secret: db-password, env: DB_PASSWORD}
  update: {minReady: 10ms}
";

impl Lab {
    /// `reeve secret set` with a value from a pipe; what it said, which is not the value.
    fn set(&self, code: i32, name: &str, value: &[u8]) -> String {
        let mut command = self.command(&["secret", "set", name]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("reeve starts");
        let mut input = child.stdin.take().expect("a pipe");
        // It may have refused before it read all.
        let _ = input.write_all(value);
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.concat();
        assert_eq!(output.status.code(), Some(code), "{text}");
        text
    }

    fn nothing_tells_a_value(&self) {
        let prefix = Prefix::new("/reeve/").expect("a prefix");
        let listing = self.on(self.store.list(&prefix)).expect("a list");
        for kv in listing.kvs {
            let text = String::from_utf8_lossy(&kv.value).into_owned();
            let key = String::from_utf8_lossy(&kv.key).into_owned();
            assert!(!VALUES.iter().any(|value| text.contains(value)), "{key}");
        }
    }
}

#[test]
fn a_secret_is_set_used_changed_undone_and_removed_and_its_value_is_shown_nowhere() {
    let lab = Lab::with(&["nginx:1"], "100");
    let web = lab.file("web.yaml", WEB.as_bytes());
    let text = lab.exits(9, &["apply", "-f", &web]);
    assert!(text.contains("reeve secret set db-password"), "{text}");
    assert!(
        text.contains("docker inspect") && text.contains("db-password (DB_PASSWORD)"),
        "{text}"
    );
    let text = lab.set(0, "db-password", VALUES[0].as_bytes());
    assert!(text.contains("secret/db-password: new"), "{text}");
    lab.until("it goes on by itself", || lab.engine.running().len() == 2);
    let ls = lab.exits(0, &["secret", "ls"]);
    assert!(
        ls.contains("db-password") && ls.contains("web") && ls.contains("Set"),
        "{ls}"
    );

    let text = lab.set(0, "db-password", format!("{}\n", VALUES[1]).as_bytes());
    assert!(text.contains("edition 1 of secret db-password became 2"), "{text}");
    assert!(text.contains("ends with a line break"), "{text}");
    lab.until("all are replaced", || {
        lab.engine.running() == ["default.web.1.2".to_owned(), "default.web.2.2".to_owned()].into()
    });
    let text = lab.exits(0, &["secret", "undo", "db-password"]);
    assert!(text.contains("edition 2 of secret db-password became 1"), "{text}");
    lab.until("all are replaced", || {
        lab.engine.running() == ["default.web.1.3".to_owned(), "default.web.2.3".to_owned()].into()
    });
    let text = lab.exits(6, &["secret", "undo", "db-password"]);
    assert!(
        text.contains("no edition before") && text.contains("it has 1, 2"),
        "{text}"
    );

    let text = lab.exits(6, &["secret", "rm", "db-password", "--yes"]);
    assert!(
        text.contains("service/web") && text.contains("nothing was deleted"),
        "{text}"
    );
    for args in [
        &["get", "secrets", "-A"][..],
        &["get", "secret", "db-password", "-o", "yaml"],
        &["describe", "secret", "db-password"],
        &["describe", "service", "web"],
        &["secret", "ls", "-o", "json"],
        &["describe", "secret", "db-password", "-o", "json"],
        &["get", "all", "-A", "-o", "json"],
        &["events"],
        &["status"],
    ] {
        let text = lab.exits(0, args);
        assert!(!VALUES.iter().any(|value| text.contains(value)), "{args:?}: {text}");
    }
    lab.nothing_tells_a_value();

    // A manifest says what it is for, and cannot take the value.
    let manifest =
        "apiVersion: reeve/v1\nkind: Secret\nmetadata: {name: db-password}\nspec: {description: for the shop}\n";
    let file = lab.file("secret.yaml", manifest.as_bytes());
    lab.exits(0, &["apply", "-f", &file]);
    assert!(
        lab.exits(0, &["describe", "secret", "db-password"])
            .contains("for the shop")
    );
    assert!(lab.exits(0, &["secret", "ls", "-o", "json"]).contains("\"edition\": 1"));

    lab.exits(0, &["delete", "service", "web", "--yes"]);
    lab.exits(0, &["secret", "rm", "db-password", "--yes"]);
    assert_eq!(
        lab.count("/reeve/sealed/") + lab.count("/reeve/desired/default/secret/"),
        0
    );
    assert!(
        lab.exits(6, &["secret", "rm", "db-password", "--yes"])
            .contains("there is no secret/db-password")
    );
}

#[test]
fn what_is_no_value_is_refused_and_nothing_is_written() {
    let lab = Lab::with(&[], "100");
    assert!(lab.set(2, "a", b"").contains("reeve secret rm"));
    assert!(lab.set(9, "a", &vec![b'x'; (64 << 10) + 1]).contains("64 KiB"));
    let text = lab.exits(2, &["secret", "set", "a", "hunter2"]);
    assert!(text.contains("unexpected argument"), "{text}");
    lab.exits(6, &["secret", "set", "a", "--file", "/nowhere"]);
    assert_eq!(lab.count("/reeve/sealed/"), 0);
    // As long as it may be, and of any bytes.
    let all: Vec<u8> = (0..64 << 10).map(|at: u32| at.to_le_bytes()[0]).collect();
    for _ in 0..6 {
        lab.set(0, "a", &all);
    }
    assert!(lab.exits(0, &["secret", "ls", "-o", "json"]).contains("\"edition\": 6"));
}
