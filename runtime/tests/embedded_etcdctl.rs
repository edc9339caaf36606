//! `etcdctl` against the embedded store: the commands that people use.

#![allow(clippy::unwrap_used)] // A test that cannot go on ends.

mod embedded_support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use embedded_support::Served;
use runtime::embedded::{Embedded, OpenError, OpenOptions};

struct Ctl(String);

impl Ctl {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.0, "--command-timeout", "10s"])
            .args(args);
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args)
            .output()
            .expect("`etcdctl` must be installed for this test: apt-get install etcd-client")
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(!output.status.success(), "etcdctl {args:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    fn with_input(&self, args: &[&str], input: &str) -> String {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Ends its process with its value.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `test` off the runtime that serves the store.
async fn with_ctl(test: impl FnOnce(Ctl, &Path) + Send + 'static) {
    let served = Served::start().await;
    let ctl = Ctl(served.endpoint.clone());
    let dir = served.dir.path().to_path_buf();
    tokio::task::spawn_blocking(move || test(ctl, &dir)).await.unwrap();
    served.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_puts_gets_and_deletes() {
    with_ctl(|ctl, _| {
        assert_eq!(ctl.ok(&["put", "/a", "1"]), "OK\n");
        ctl.ok(&["put", "/b", "2"]);
        assert_eq!(ctl.ok(&["put", "--prev-kv", "/b", "3"]), "OK\n/b\n2\n");
        assert_eq!(ctl.ok(&["get", "--prefix", "/"]), "/a\n1\n/b\n3\n");
        let order = ["get", "--prefix", "--order=DESCEND", "--sort-by=MODIFY", "/"];
        assert_eq!(ctl.ok(&order), "/b\n3\n/a\n1\n");
        assert_eq!(ctl.ok(&["get", "--rev=3", "/b"]), "/b\n2\n");
        assert_eq!(ctl.ok(&["get", "--keys-only", "--limit=1", "--prefix", ""]), "/a\n\n");
        assert_eq!(ctl.ok(&["del", "--prefix", "/"]), "2\n");
        assert!(ctl.ok(&["compaction", "4"]).contains("compacted revision 4"));
        assert!(ctl.fails(&["get", "--rev=3", "/b"]).contains("has been compacted"));
        assert!(ctl.fails(&["compaction", "99"]).contains("is a future revision"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_runs_a_txn() {
    with_ctl(|ctl, _| {
        ctl.ok(&["put", "k", "old"]);
        let txn = "value(\"k\") = \"old\"\n\nput k new\nget k\n\nget k\n\n";
        let said = ctl.with_input(&["txn"], txn);
        assert_eq!(said, "SUCCESS\n\nOK\n\nk\nnew\n");
        assert!(ctl.with_input(&["txn"], txn).starts_with("FAILURE"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_watches() {
    with_ctl(|ctl, _| {
        ctl.ok(&["put", "w/1", "past"]);
        let child = ctl
            .command(&["watch", "--prefix", "--rev=2", "w/"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut watch = Background(child);
        let mut lines = BufReader::new(watch.0.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let mut three = || [(); 3].map(|()| lines.next().unwrap()).join(" ");
        assert_eq!(three(), "PUT w/1 past");
        ctl.ok(&["put", "w/2", "present"]);
        assert_eq!(three(), "PUT w/2 present");
        ctl.ok(&["del", "w/1"]);
        assert_eq!(three(), "DELETE w/1 ");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_grants_keeps_and_revokes_leases() {
    with_ctl(|ctl, _| {
        let granted = ctl.ok(&["lease", "grant", "500"]);
        let id = granted.split(' ').nth(1).unwrap().to_owned();
        ctl.ok(&["put", &format!("--lease={id}"), "k", "v"]);
        let life = ctl.ok(&["lease", "timetolive", "--keys", &id]);
        assert!(
            life.contains("granted with TTL(500s)") && life.contains("[k]"),
            "{life}"
        );
        assert!(ctl.ok(&["lease", "keep-alive", "--once", &id]).contains("TTL(500)"));
        assert!(ctl.ok(&["lease", "list"]).contains(&id));
        assert!(ctl.ok(&["lease", "revoke", &id]).contains("revoked"));
        assert_eq!(ctl.ok(&["get", "k"]), "");
        assert!(
            ctl.fails(&["lease", "revoke", &id])
                .contains("requested lease not found")
        );
        assert!(ctl.ok(&["lease", "timetolive", &id]).contains("already expired"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_asks_after_the_member() {
    with_ctl(|ctl, _| {
        let status = ctl.ok(&["endpoint", "status"]);
        assert!(status.contains("3.4.23"), "{status}");
        let member = ctl.ok(&["member", "list"]);
        assert!(member.contains("started") && member.contains(&ctl.0), "{member}");
        ctl.ok(&["endpoint", "health"]);
        ctl.ok(&["endpoint", "hashkv"]);
        assert_eq!(ctl.ok(&["alarm", "list"]), "");
        ctl.ok(&["put", "k", "v"]);
        ctl.ok(&["defrag"]);
        assert_eq!(ctl.ok(&["get", "k"]), "k\nv\n");
        assert!(ctl.fails(&["auth", "enable"]).contains("authentication is not enabled"));
        assert!(ctl.fails(&["user", "list"]).contains("authentication is not enabled"));
        ctl.fails(&["member", "add", "x", "--peer-urls=http://127.0.0.1:1"]);
        ctl.ok(&["check", "perf", "--load=s", "--help"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_etcdctl_saved_is_restored_whole() {
    let served = Served::start().await;
    let ctl = Ctl(served.endpoint.clone());
    let before = served.dir.path().to_path_buf();
    let (dir, file) = tokio::task::spawn_blocking(move || {
        for i in 0..200 {
            // Enough for several pieces.
            ctl.ok(&["put", &format!("k/{}", i % 50), &"v".repeat(4000 + i)]);
        }
        ctl.ok(&["compaction", "20"]);
        ctl.ok(&["lease", "grant", "500"]);
        let file = before.join("saved");
        ctl.ok(&["snapshot", "save", file.to_str().unwrap()]);
        (before.join("restored"), file)
    })
    .await
    .unwrap();
    let hash = |raw: embedded_support::Raw| async move {
        let mut raw = raw;
        let asked = etcd_client::proto::PbHashKvRequest { revision: 0 };
        let answer = raw.hash_kv(asked).await.unwrap();
        (answer.hash, answer.compact_revision, answer.hash_revision)
    };
    let saved = hash(served.raw().await).await;
    Embedded::restore(&dir, &file).unwrap();
    let error = Embedded::restore(&dir, &file).unwrap_err();
    assert!(matches!(error, OpenError::NotEmpty { .. }), "{error}");
    let store = Embedded::open(OpenOptions::new(&dir)).unwrap();
    let restored = Served::serve(store, tempfile::TempDir::new().unwrap()).await;
    assert_eq!(hash(restored.raw().await).await, saved);
    let mut client = restored.store.client();
    assert_eq!(client.leases().await.unwrap().leases().len(), 1);
    let put = client.put("more", "", None).await.unwrap();
    assert_eq!(put.header().unwrap().revision(), 202);
    restored.close().await;

    // Any damage to the file is found.
    let bytes = std::fs::read(&file).unwrap();
    let damaged = served.dir.path().join("damaged");
    let target = served.dir.path().join("target");
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&damaged, bytes).unwrap();
        let error = Embedded::restore(&target, &damaged).unwrap_err();
        assert!(matches!(error, OpenError::BadSnapshot { .. }), "{what}: {error}");
    };
    for at in [0, 40, bytes.len() / 2, bytes.len() - 1] {
        let mut copy = bytes.clone();
        copy[at] ^= 1;
        refused(&copy, "a flipped bit");
    }
    refused(&bytes[..bytes.len() - 512], "cut");
    refused(b"", "empty");
    served.close().await;
}
