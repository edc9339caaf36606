//! `reeve upload`, `download` and `files` against a whole cluster in this process: what a person sees of a file's life.

use std::io::Write as _;
use std::process::Stdio;

use crate::lab::Lab;
use runtime::{Guard, Prefix, Store, person};

fn started() -> Lab {
    Lab::with(&["nginx:1"], "100")
}

impl Lab {
    fn blobs(&self) -> usize {
        self.count("/reeve/blobs/")
    }
}

const WEB: &str = "apiVersion: reeve/v1
kind: Service
metadata: {name: web}
spec:
  replicas: 2
  container:
    image: nginx:1
    files:
      - {file: nginx-conf, path: /etc/nginx/nginx.conf}
  update: {minReady: 10ms}
";

#[test]
fn a_file_is_uploaded_used_changed_undone_and_deleted() {
    let lab = started();
    let web = lab.file("web.yaml", WEB.as_bytes());
    let text = lab.exits(9, &["apply", "-f", &web]);
    assert!(text.contains("reeve upload FILE nginx-conf"), "{text}");
    let one = lab.file("nginx.conf", b"worker_processes 1;\n");
    lab.exits(0, &["upload", &one]);
    lab.until("it goes on by itself", || lab.engine.running().len() == 2);
    let text = lab.exits(0, &["files"]);
    assert!(
        text.contains("nginx-conf") && text.contains("web") && text.contains("InForce"),
        "{text}"
    );
    assert_eq!(lab.run(&["download", "nginx-conf"]).stdout, b"worker_processes 1;\n");

    let two = lab.file("nginx.conf", b"worker_processes 2;\n");
    let text = lab.exits(0, &["upload", &two]);
    assert!(text.contains("web.1") || text.contains("web"), "{text}");
    assert!(text.contains("edition 1 of file nginx-conf became 2"), "{text}");
    lab.until("all are replaced", || {
        lab.engine.running() == ["default.web.1.2".to_owned(), "default.web.2.2".to_owned()].into()
    });
    assert!(lab.exits(0, &["upload", &two]).contains("unchanged"));
    assert_eq!(
        lab.run(&["download", "nginx-conf", "--edition", "1"]).stdout,
        b"worker_processes 1;\n"
    );
    let text = lab.exits(6, &["download", "nginx-conf", "--edition", "9"]);
    assert!(text.contains("there are 2, 1"), "{text}");
    lab.exits(0, &["files", "undo", "nginx-conf"]);
    assert_eq!(lab.run(&["download", "nginx-conf"]).stdout, b"worker_processes 1;\n");
    let value: serde_json::Value = serde_json::from_slice(&lab.run(&["files", "-o", "json"]).stdout).expect("JSON");
    assert_eq!(
        (&value[0]["edition"], &value[0]["usedBy"][0]),
        (&3.into(), &"web".into())
    );
    let text = lab.exits(0, &["describe", "service", "web"]);
    assert!(
        text.contains("nginx-conf (edition 3) at /etc/nginx/nginx.conf"),
        "{text}"
    );
    let text = lab.exits(0, &["describe", "configfile", "nginx-conf"]);
    assert!(text.contains("service/web") && text.contains("sha256:"), "{text}");

    let text = lab.exits(6, &["delete", "configfile", "nginx-conf", "--yes"]);
    assert!(
        text.contains("used by service/web") && text.contains("--force"),
        "{text}"
    );
    lab.exits(0, &["delete", "configfile", "nginx-conf", "--yes", "--force"]);
    lab.until("told", || {
        String::from_utf8_lossy(&lab.run(&["describe", "service", "web"]).stdout).contains("FileDeleted")
    });
    assert_eq!(lab.engine.running().len(), 2);
    lab.exits(0, &["delete", "service", "web", "--yes"]);
    lab.until("nothing is left", || !lab.exits(0, &["files"]).contains("nginx-conf "));
}

#[test]
fn four_mebibytes_come_back_byte_for_byte_and_content_nobody_refers_to_is_pruned() {
    let lab = started();
    let bytes: Vec<u8> = (0_u32..4 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect();
    let file = lab.file("geo.bin", &bytes);
    lab.exits(0, &["upload", &file]);
    assert_eq!(lab.blobs(), 8);
    assert!(lab.run(&["download", "geo-bin"]).stdout == bytes, "byte for byte");
    let copy = lab.dir.path().join("copy").display().to_string();
    lab.exits(0, &["download", "geo-bin", &copy]);
    assert!(std::fs::read(&copy).expect("the copy") == bytes);
    let text = lab.exits(6, &["download", "geo-bin", &copy]);
    assert!(text.contains("--force"), "{text}");

    // A part is lost: told, and whole again after the next upload.
    let listing = lab.on(lab.store.list(&Prefix::new("/reeve/blobs/").unwrap())).unwrap();
    let txn = person::txn()
        .delete(listing.kvs[0].key.clone(), Guard::Any)
        .delete(listing.kvs[3].key.clone(), Guard::Any);
    let _committed = lab.on(lab.store.commit(txn)).expect("a write");
    assert!(lab.exits(6, &["download", "geo-bin"]).contains("upload it again"));
    lab.exits(0, &["upload", &file]);
    assert!(lab.run(&["download", "geo-bin"]).stdout == bytes, "byte for byte");

    assert!(lab.exits(0, &["files", "prune"]).contains("nothing to remove"));
    // Content that never became a document.
    let txn = person::txn().put(format!("/reeve/blobs/{}/0", "ab".repeat(32)), b"x".to_vec(), Guard::Any);
    let _committed = lab.on(lab.store.commit(txn)).expect("a write");
    assert!(
        lab.exits(0, &["files", "prune", "--dry-run"])
            .contains("1 blob would go")
    );
    assert_eq!(lab.blobs(), 9);
    assert!(lab.exits(0, &["files", "prune"]).contains("1 blob removed"));
    assert_eq!(lab.blobs(), 8, "what an accepted edition refers to stays");
    assert!(lab.run(&["download", "geo-bin"]).stdout == bytes);
}

#[test]
fn names_are_made_or_suggested_and_what_is_too_large_is_refused() {
    let lab = started();
    let spaced = lab.file("my page.html", b"<h1>hi</h1>");
    let text = lab.exits(2, &["upload", &spaced]);
    assert!(text.contains("my-page-html"), "{text}");
    lab.exits(0, &["upload", &spaced, "page"]);
    let mut child = lab
        .command(&["upload", "-", "piped"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("reeve starts");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(b"\xff\x00")
        .expect("a write");
    assert!(child.wait().expect("it ends").success());
    assert_eq!(lab.run(&["download", "piped"]).stdout, b"\xff\x00");
    let large = lab.file("large", &vec![0; (8 << 20) + 1]);
    assert!(lab.exits(9, &["upload", &large]).contains("8 MiB"));
}
