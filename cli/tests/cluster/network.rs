//! What `reeve network` says where there is no network, or none whose links have keys.

use std::process::{Command, Output};

struct Lab {
    endpoint: String,
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (endpoint, _, runtime) = crate::common::serve(dir.path());
        let lab = Self {
            endpoint,
            dir,
            _runtime: runtime,
        };
        lab.says(true, &["init"]);
        lab
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_reeve"))
            .args(["--etcd", &self.endpoint, "--data-dir"])
            .arg(self.dir.path())
            .args(args)
            .env("HOME", self.dir.path())
            .env("COLUMNS", "80")
            .output()
            .expect("it runs")
    }

    #[track_caller]
    fn says(&self, done: bool, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), done, "reeve {args:?}: {said}");
        said
    }
}

#[test]
fn keys_are_rotated_only_where_links_have_any() {
    let lab = Lab::new();
    let said = lab.says(false, &["network", "rotate-keys", "--all-nodes"]);
    assert!(said.contains("the cluster has no network of its own"), "{said}");
    assert!(said.contains("`reeve network create` gives it one"), "{said}");
    let said = lab.says(false, &["network", "create", "--key-days", "3651"]);
    assert!(said.contains("3651 is not in 0..=3650"), "{said}");
    let said = lab.says(
        true,
        &[
            "network",
            "create",
            "--backend",
            "vxlan",
            "--key-days",
            "7",
            "-o",
            "json",
        ],
    );
    let value: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(value["network"]["keyDays"], 7, "{said}");
    for words in [&["--all-nodes"][..], &[]] {
        let said = lab.says(false, &[&["network", "rotate-keys"], words].concat());
        assert!(said.contains("links by vxlan are in clear and have no keys"), "{said}");
        assert!(said.contains("nothing to rotate"), "{said}");
        assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    }
}

#[test]
fn where_nobody_is_here_nodes_are_to_be_named() {
    let lab = Lab::new();
    lab.says(true, &["network", "create", "--key-days", "30"]);
    // Of a network that is there the days can be changed, and nothing else.
    let said = lab.says(true, &["network", "create", "--key-days", "7"]);
    assert!(
        said.contains("the network is changed") && said.contains("within 7 days"),
        "{said}"
    );
    let said = lab.says(true, &["network", "create", "--key-days", "7"]);
    assert!(said.contains("is there already"), "{said}");
    lab.says(false, &["network", "create"]);
    lab.says(
        false,
        &["network", "create", "--key-days", "8", "--cidr", "10.7.0.0/16"],
    );
    let said = lab.says(false, &["network", "rotate-keys"]);
    assert!(said.contains("--all-nodes"), "{said}");
    let said = lab.says(false, &["network", "rotate-keys", "--node", "n9"]);
    assert!(said.contains("there is no node n9"), "{said}");
}
