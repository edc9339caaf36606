//! The embedded store on a disk that fails it: killed mid-write, full, damaged.
//!
//! The full disk is a small tmpfs, so that test needs root, as the engine's tests do.

#![allow(clippy::unwrap_used)] // A test that cannot go on ends.

mod embedded_support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use embedded_support::Dice;
use etcd_client::{GetOptions, LeaseGrantOptions, PutOptions};
use runtime::embedded::{Embedded, OpenError, OpenOptions};
use tempfile::TempDir;

/// Set for the process that is to be killed: the directory of its store.
const CHILD: &str = "REEVE_TEST_STORE_DIR";

fn rt() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Not a test of its own: the writer that the next test starts and kills. It prints a line
/// `key revision` for every write that was acknowledged.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    rt().block_on(async {
        let store = Embedded::open(OpenOptions::new(dir)).unwrap();
        let generation = store.revision();
        let writers = (0..16).map(|writer| {
            let mut client = store.client();
            async move {
                for i in 0.. {
                    let key = format!("k/{writer}/{}", i % 50);
                    let value = format!("{generation}-{i}");
                    let put = client.put(key.clone(), value.clone(), None).await.unwrap();
                    let revision = put.header().unwrap().revision();
                    let line = format!("ack {key} {value} {revision}\n");
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                }
            }
        });
        futures::future::join_all(writers).await;
    });
}

#[test]
fn kill_9_during_writes_loses_nothing_acknowledged() {
    let dir = TempDir::new().unwrap();
    let store_dir = dir.path().join("store");
    let mut dice = Dice::new(u64::from(std::process::id()));
    let mut acknowledged: BTreeMap<String, (String, i64)> = BTreeMap::new();
    let mut total = 0;
    for _ in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD, &store_dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let lifetime = 50 + dice.below(1500);
        let mut seen = 0;
        while let Some(Ok(line)) = lines.next() {
            // The last line may be cut; an acknowledgement counts when it is whole.
            let words: Vec<&str> = line.split(' ').collect();
            if let ["ack", key, value, revision] = words[..] {
                let revision: i64 = revision.parse().unwrap();
                let entry = acknowledged.entry(key.into()).or_default();
                if revision > entry.1 {
                    *entry = (value.into(), revision);
                }
                seen += 1;
            }
            if seen == lifetime {
                child.kill().unwrap(); // SIGKILL, with writes in flight
            }
        }
        child.wait().unwrap();
        assert!(seen >= lifetime, "the child wrote only {seen}");
        total += seen;
        rt().block_on(async {
            let store = Embedded::open(OpenOptions::new(&store_dir)).unwrap();
            let mut client = store.client();
            for (key, (value, revision)) in &acknowledged {
                let got = client.get(key.as_str(), None).await.unwrap();
                let kv = got.kvs().first().unwrap_or_else(|| panic!("{key} is lost"));
                assert!(kv.mod_revision() >= *revision, "{key} went back in time");
                if kv.mod_revision() == *revision {
                    assert_eq!(kv.value_str().unwrap(), value);
                }
            }
            store.close().await;
        });
    }
    assert!(total > 400);
}

/// A small file system of its own, unmounted at the end.
struct SmallDisk(PathBuf, #[allow(dead_code)] TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let at = dir.path().join("small");
        std::fs::create_dir(&at).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&at)
            .status()
            .unwrap();
        assert!(status.success(), "mounting a tmpfs needs root");
        Self(at, dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_writes_and_leaves_everything_else_as_it_was() {
    let disk = SmallDisk::mount("8m");
    let ballast = disk.0.join("ballast");
    rt().block_on(async {
        let store = Embedded::open(OpenOptions::new(disk.0.join("store"))).unwrap();
        let mut client = store.client();
        client.put("before", "1", None).await.unwrap();
        let options = LeaseGrantOptions::new().with_id(5);
        client.lease_grant(1000, Some(options)).await.unwrap();
        let leased = PutOptions::new().with_lease(5);
        client.put("leased", "1", Some(leased)).await.unwrap();
        // The rest of the disk, by somebody else.
        let mut file = std::fs::File::create(&ballast).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        drop(file);

        let mut acknowledged = store.revision();
        let mut refusals = 0;
        for i in 0..40 {
            let key = format!("big/{i}");
            match client.put(key.as_str(), vec![1; 200_000], None).await {
                Ok(put) => acknowledged = put.header().unwrap().revision(),
                Err(error) => {
                    let text = error.to_string();
                    assert!(
                        text.contains("database space exceeded"),
                        "not the words of a full disk: {text}"
                    );
                    refusals += 1;
                    let got = client.get(key.as_str(), None).await.unwrap();
                    assert_eq!(got.count(), 0, "a refused write is not in force");
                }
            }
        }
        assert!(refusals > 0, "the disk was not full");
        let told = |status: &etcd_client::StatusResponse| status.errors().iter().any(|error| error.contains("NOSPACE"));
        assert!(told(&client.status().await.unwrap()), "whoever asks is told");
        assert_eq!(store.revision(), acknowledged);
        assert_eq!(client.get("before", None).await.unwrap().count(), 1);
        let asked = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
        let life = client.lease_time_to_live(5, Some(asked)).await.unwrap();
        assert_eq!(life.keys(), [b"leased"]);

        std::fs::remove_file(&ballast).unwrap();
        let put = client.put("after", "1", None).await.unwrap();
        assert_eq!(put.header().unwrap().revision(), acknowledged + 1);
        assert!(!told(&client.status().await.unwrap()));
        store.close().await;
        let store = Embedded::open(OpenOptions::new(disk.0.join("store"))).unwrap();
        assert_eq!(store.revision(), acknowledged + 1);
        store.close().await;
    });
}

/// A closed store with some content.
fn filled(dir: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    rt().block_on(async {
        let store = Embedded::open(OpenOptions::new(dir)).unwrap();
        let mut client = store.client();
        for i in 0..300 {
            let key = format!("key/{i:03}");
            client.put(key, vec![b'v'; i], None).await.unwrap();
        }
        client.compact(200, None).await.unwrap();
        for _ in 0..100 {
            client.lease_grant(1000, None).await.unwrap();
        }
        let all = content(&store).await;
        store.close().await;
        all
    })
}

/// All keys with their values, and all leases.
async fn content(store: &Embedded) -> Vec<(Vec<u8>, Vec<u8>)> {
    let all = GetOptions::new().with_all_keys();
    let mut client = store.client();
    let got = client.get("", Some(all)).await.unwrap();
    let pair = |kv: &etcd_client::KeyValue| (kv.key().to_vec(), kv.value().to_vec());
    let mut content: Vec<_> = got.kvs().iter().map(pair).collect();
    for lease in client.leases().await.unwrap().leases() {
        let life = client.lease_time_to_live(lease.id(), None).await.unwrap();
        content.push((
            lease.id().to_be_bytes().to_vec(),
            life.granted_ttl().to_be_bytes().to_vec(),
        ));
    }
    content.sort();
    content
}

/// Opens what may be damaged: whole, or an error with a remedy. Nothing else.
fn check(dir: &Path, whole: &[(Vec<u8>, Vec<u8>)], what: &str) -> bool {
    match Embedded::open(OpenOptions::new(dir)) {
        Ok(store) => {
            let found = rt().block_on(content(&store));
            assert!(found == whole, "{what}: opened with other content");
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                matches!(error, OpenError::Damaged { .. } | OpenError::Format { .. }),
                "{what}: {text}"
            );
            assert!(text.contains("store.redb"), "{what}: names no file: {text}");
            false
        }
    }
}

#[test]
fn a_damaged_file_is_refused_or_read_whole_never_in_part() {
    let dir = TempDir::new().unwrap();
    let good = dir.path().join("good");
    let whole = filled(&good);
    let bytes = std::fs::read(good.join("store.redb")).unwrap();
    let mut dice = Dice::new(7);
    let mut refused = 0;
    let bad = dir.path().join("bad");
    for round in 0..150 {
        let _ = std::fs::remove_dir_all(&bad);
        std::fs::create_dir(&bad).unwrap();
        let mut copy = bytes.clone();
        let what = match round % 5 {
            0 => {
                let len = dice.below(copy.len() as u64) as usize;
                copy.truncate(len);
                format!("cut to {len}")
            }
            1 => {
                let at = dice.below(copy.len() as u64 / 4096) as usize * 4096;
                copy[at..at + 4096].fill(0);
                format!("page at {at} zeroed")
            }
            _ => {
                let at = dice.below(copy.len() as u64) as usize;
                copy[at] ^= 1 << dice.below(8);
                format!("bit flipped at {at}")
            }
        };
        std::fs::write(bad.join("store.redb"), &copy).unwrap();
        refused += usize::from(!check(&bad, &whole, &what));
    }
    assert!(refused > 30, "only {refused} damages were seen");
    std::fs::write(bad.join("store.redb"), b"").unwrap();
    assert!(!check(&bad, &whole, "empty"));
    std::fs::write(bad.join("store.redb"), b"not a database").unwrap();
    assert!(!check(&bad, &whole, "something else"));
}

#[test]
fn an_unfinished_creation_is_begun_again() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("store.redb.new"), b"half").unwrap();
    let store = Embedded::open(OpenOptions::new(dir.path())).unwrap();
    assert_eq!(store.revision(), 1);
}

#[test]
fn another_process_is_kept_out_until_the_holder_has_gone() {
    let dir = TempDir::new().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
        .env(CHILD, dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().starts_with("ack") {}
    let error = Embedded::open(OpenOptions::new(dir.path())).unwrap_err();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    // A killed holder leaves nothing behind that would keep the next one out.
    Embedded::open(OpenOptions::new(dir.path())).unwrap();
}
