//! `reeve run` against a whole cluster in this process: what is offered, what is refused before anything is asked of a node,
//! and what a node refuses. That commands run is shown on real engines (`e2e/tests/people.rs`).

use crate::lab::Lab;

const COMMANDS: &str = r#"
apiVersion: reeve/v1
kind: Service
metadata: {name: web}
spec: {replicas: 2, container: {image: "nginx:1"}}
---
apiVersion: reeve/v1
kind: Command
metadata: {name: flush-cache}
spec:
  description: Empty the cache of every page, or of one
  service: web
  command: [cache, flush, "${page}", "--mode=${mode}"]
  parameters:
    - {name: page, description: Its path, pattern: "/[a-z/]*"}
    - {name: mode, values: [soft, hard], default: soft}
---
apiVersion: reeve/v1
kind: Command
metadata: {name: reload}
spec: {service: web, all: true, command: [nginx, -s, reload], extraArguments: true}
---
apiVersion: reeve/v1
kind: Command
metadata: {name: tidy}
spec: {description: Remove what nobody uses, nodes: {all: true}, command: [docker, image, prune, -f]}
---
apiVersion: reeve/v1
kind: Command
metadata: {name: elsewhere, namespace: shop}
spec: {service: none, command: [x]}
"#;

#[test]
fn commands_are_listed_described_and_refused_with_what_to_do() {
    let lab = Lab::with(&["nginx:1"], "80");
    assert!(lab.exits(0, &["run"]).contains("no commands in namespace `default`"));
    let file = lab.file("commands.yaml", COMMANDS.as_bytes());
    let applied = lab.exits(0, &["apply", "-f", &file, "--yes"]);
    assert!(applied.contains("command/flush-cache is in force"), "{applied}");

    let listed = lab.exits(0, &["run"]);
    println!("{listed}");
    for part in [
        "flush-cache",
        "page [mode]",
        "all web",
        "[-- ...]",
        "all nodes",
        "Remove what nobody uses",
    ] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    assert!(
        !listed.contains("elsewhere") && listed.lines().all(|line| line.chars().count() <= 80),
        "{listed}"
    );
    assert!(lab.exits(0, &["run", "-A"]).contains("shop"));
    assert_eq!(
        lab.exits(0, &["run", "-n", "shop", "-o", "name"]),
        "command/elsewhere\n"
    );
    let got = lab.exits(0, &["get", "cmd"]);
    assert!(
        got.contains("docker image prune -f") && got.contains("Declared"),
        "{got}"
    );
    let described = lab.exits(0, &["describe", "command", "flush-cache"]);
    println!("{described}");
    for part in [
        "Its path; matches `/[a-z/]*`; must be given",
        "one of `soft`, `hard`; `soft` when not given",
    ] {
        let seen = described.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(seen.contains(part), "{part}: {described}");
    }

    // Before anything is asked of a node.
    for (args, code, said) in [
        (&["run", "flush"][..], 6, "there is elsewhere"),
        (&["run", "elsewhere"], 6, "add -n shop"),
        (&["run", "flush-cache"], 2, "the parameter `page` is missing: Its path"),
        (&["run", "flush-cache", "-p", "page=x; rm -rf /"], 2, "it must match"),
        (
            &["run", "flush-cache", "-p", "page=/", "-p", "mode=--x"],
            2,
            "one of `soft`, `hard`",
        ),
        (
            &["run", "flush-cache", "-p", "page=/", "-p", "page=/a"],
            2,
            "given twice",
        ),
        (
            &["run", "flush-cache", "-p", "page=/", "--", "more"],
            2,
            "no further arguments",
        ),
        (
            &["run", "flush-cache", "-p", "page=/", "--on", "web.7"],
            2,
            "web.1, web.2",
        ),
        (&["run", "flush-cache", "-p", "page"], 2, "NAME=VALUE"),
        (&["run", "-n", "shop", "elsewhere"], 6, "has no instance"),
        (&["run", "tidy"], 2, "docker image prune -f"),
        (&["run", "tidy", "--on", "n7", "--yes"], 2, "it runs on n1"),
    ] {
        let text = lab.exits(code, args);
        println!("reeve {args:?}\n{text}");
        if args == ["run", "flush"] {
            assert!(text.contains("flush-cache, reload, tidy"), "{text}");
        } else {
            assert!(text.contains(said), "{args:?} does not say `{said}`: {text}");
        }
    }

    // By the node.
    let data = lab.dir.path().display().to_string();
    let refused = lab.exits(6, &["run", "flush-cache", "-p", "page=/a", "--data-dir", &data]);
    assert!(refused.contains("--allow-exec"), "{refused}");
    let refused = lab.exits(6, &["run", "reload", "--data-dir", &data]);
    println!("{refused}");
    assert!(refused.contains("it succeeded in 0 of 2 instances"), "{refused}");
    let refused = lab.exits(6, &["run", "tidy", "--yes", "--data-dir", &data]);
    assert!(refused.contains("nodeCommands: [exec]"), "{refused}");

    // What was asked is in the record, without the values of parameters; what was only listed is not.
    let audit = lab.exits(0, &["audit", "-o", "json"]);
    assert!(
        audit.contains("command/flush-cache") && audit.contains("web.1 on node/n1"),
        "{audit}"
    );
    assert!(!audit.contains("page"), "{audit}");

    // What was put past admission is neither offered nor run, and is said.
    let put = runtime::person::txn().put(
        "/reeve/desired/default/command/broken",
        b"kind: Command".to_vec(),
        runtime::Guard::Any,
    );
    let outcome = lab.on(runtime::Store::commit(&lab.store, put)).expect("a write");
    assert!(matches!(outcome, runtime::Outcome::Committed { .. }), "{outcome:?}");
    let listed = lab.exits(0, &["run"]);
    assert!(listed.contains("one command is not valid"), "{listed}");
    let refused = lab.exits(9, &["run", "broken"]);
    assert!(refused.contains("`reeve describe command broken`"), "{refused}");

    let deleted = lab.exits(0, &["delete", "command", "tidy", "--yes"]);
    assert!(deleted.contains("it is offered no more"), "{deleted}");
    lab.exits(6, &["run", "tidy", "--yes"]);
}
