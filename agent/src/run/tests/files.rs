//! Files in the loop: fetched and laid out before anything stops, there without the store, never of other content than was
//! accepted, and gone with their container.

use std::os::unix::fs::MetadataExt as _;

use schemas::config_file::{ConfigFileSpec, FileDigest, FileEdition};
use schemas::records::AcceptedFile;

use super::*;

const WEB: &str = "default.web.1.1";

fn file(name: &str) -> ResourceKey {
    ResourceKey {
        namespace: Some("default".parse().unwrap()),
        kind: Kind::ConfigFile,
        name: name.parse().unwrap(),
    }
}

impl Bed {
    /// Accepts an edition of a file whose content stands in its record.
    fn edition(&self, name: &str, n: u64, bytes: &[u8]) -> FileEdition {
        self.record(name, n, bytes, ConfigFileSpec::inline(bytes).unwrap())
    }

    /// Accepts one whose content is in parts of so many bytes.
    fn blob(&self, name: &str, n: u64, bytes: &[u8], part: usize) -> FileEdition {
        let digest = FileDigest::of(bytes);
        for (at, bytes) in bytes.chunks(part).enumerate() {
            self.store
                .put(key(&Key::Blob(digest, u32::try_from(at).unwrap())), bytes.to_vec());
        }
        self.record(name, n, bytes, ConfigFileSpec::blob(digest, bytes.len() as u64))
    }

    fn record(&self, name: &str, n: u64, bytes: &[u8], content: ConfigFileSpec) -> FileEdition {
        let (digest, size) = (FileDigest::of(bytes), bytes.len() as u64);
        let record = Accepted {
            schema_version: SchemaVersion::default(),
            n,
            uid: Uid::derive(&self.cluster, &file(name), 1),
            desired_revision: 1,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            body: AcceptedBody::ConfigFile(Box::new(AcceptedFile { digest, size, content })),
        };
        self.store.put(key(&Key::Accepted(file(name), n)), record.encode());
        FileEdition { n, digest, size }
    }

    /// What the container of this name sees at a path: its content and mode.
    fn sees(&self, container: &str, path: &str) -> Option<(Vec<u8>, u32)> {
        let body = self.engine.containers().get(container)?.body.clone();
        let mounts = body["HostConfig"]["Mounts"].as_array()?.clone();
        let mount = mounts.into_iter().find(|mount| mount["Target"] == path)?;
        assert_eq!((&mount["Type"], &mount["ReadOnly"]), (&json!("bind"), &json!(true)));
        let source = mount["Source"].as_str()?;
        let mode = std::fs::metadata(source).ok()?.mode() & 0o7777;
        Some((std::fs::read(source).ok()?, mode))
    }

    fn copies(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path().join("containers"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn mounting(image: &str, edition: FileEdition) -> Value {
    let mut spec = spec(image);
    spec["container"]["files"] = json!([{ "file": "conf", "path": "/etc/conf", "mode": "0440", "edition": edition }]);
    spec
}

fn unavailable(report: &Report) -> Option<String> {
    let failing = one(report)?.failing.as_ref()?;
    (failing.reason == FailingReason::FileUnavailable).then(|| failing.message.clone())
}

async fn mounted() -> Bed {
    let mut bed = Bed::new();
    bed.start();
    let edition = bed.edition("conf", 1, b"one");
    let web = bed.accept("web", 1, 1, mounting("app:1", edition));
    bed.assign(&[web]);
    bed.until("ready", ready).await;
    bed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_sees_its_files_and_a_new_edition_replaces_it() {
    let mut bed = mounted().await;
    assert_eq!(bed.sees(WEB, "/etc/conf"), Some((b"one".to_vec(), 0o440)));
    let big: Vec<u8> = (0..70_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let edition = bed.blob("conf", 2, &big, 1_000);
    let web = bed.accept("web", 1, 2, mounting("app:1", edition));
    bed.assign(&[web]);
    bed.until("the new one is ready", |report| {
        one(report).is_some_and(|line| line.n == 2 && line.ready)
    })
    .await;
    assert_eq!(bed.sees("default.web.1.2", "/etc/conf"), Some((big, 0o440)));
    assert_eq!(bed.copies(), ["default.web.1.2"], "the old one's went with it");
    let kept = || crate::files::contents(bed.dir.path()).unwrap().len();
    let end = tokio::time::Instant::now() + PATIENCE;
    while kept() != 1 {
        assert!(
            tokio::time::Instant::now() < end,
            "content that no spec here mounts is forgotten"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_or_wrong_part_stops_nothing_and_is_told_until_it_is_there() {
    let mut bed = mounted().await;
    let edition = bed.blob("conf", 2, &[b'x'; 3_000], 1_000);
    let part = key(&Key::Blob(edition.digest, 1));
    bed.store.delete(&part);
    let web = bed.accept("web", 1, 2, mounting("app:1", edition));
    bed.assign(&[web]);
    let report = bed.until("told", |report| unavailable(report).is_some()).await;
    let line = one(&report).unwrap();
    assert_eq!((line.n, line.ready, line.failing.as_ref().unwrap().n), (1, true, 2));
    let said = unavailable(&report).unwrap();
    assert!(
        said.contains("part 1") && said.contains("reeve upload FILE conf"),
        "{said}"
    );
    bed.store.put(part.clone(), vec![b'y'; 1_000]);
    bed.until("told", |report| {
        unavailable(report).is_some_and(|said| said.contains("other content"))
    })
    .await;
    assert_eq!(bed.engine.running(), [WEB.to_owned()].into(), "the old one serves on");
    assert!(bed.sees(WEB, "/etc/conf").is_some());
    bed.store.put(part, vec![b'x'; 1_000]);
    bed.until("goes on by itself", |report| {
        one(report).is_some_and(|line| line.n == 2 && line.ready && line.failing.is_none())
    })
    .await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_store_gone_files_are_there_after_a_restart_and_for_a_new_container() {
    let mut bed = mounted().await;
    bed.kill().await;
    bed.store.set_down(true);
    // Somebody tidied up while nobody looked.
    std::fs::remove_dir_all(bed.dir.path().join("containers")).unwrap();
    bed.engine.crash(WEB, 3);
    bed.start();
    bed.engine_until("started again", |engine| {
        engine.calls().iter().filter(|call| call.starts_with("start")).count() == 2
    })
    .await;
    assert_eq!(bed.sees(WEB, "/etc/conf"), Some((b"one".to_vec(), 0o440)));
    bed.engine.remove_by_hand(WEB);
    bed.engine_until("created again", |engine| {
        engine.calls().iter().filter(|call| call.starts_with("create")).count() == 2 && !engine.running().is_empty()
    })
    .await;
    assert_eq!(bed.sees(WEB, "/etc/conf"), Some((b"one".to_vec(), 0o440)));
    bed.store.set_down(false);
    bed.until("reported", ready).await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_damaged_on_disk_is_fetched_again() {
    let mut bed = mounted().await;
    let content = bed.dir.path().join("files").join(FileDigest::of(b"one").hex());
    std::fs::write(&content, b"two").unwrap();
    bed.engine.remove_by_hand(WEB);
    bed.engine_until("created again", |engine| {
        engine.calls().iter().filter(|call| call.starts_with("create")).count() == 2 && !engine.running().is_empty()
    })
    .await;
    assert_eq!(bed.sees(WEB, "/etc/conf"), Some((b"one".to_vec(), 0o440)));
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_cannot_be_kept_on_disk_is_not_taken_and_what_runs_is_restarted() {
    let mut bed = mounted().await;
    let edition = bed.edition("conf", 2, b"two");
    // A directory in the place of the temporary file: the write fails, as on a broken disk.
    let in_the_way = bed
        .dir
        .path()
        .join("files")
        .join(format!("{}.new", edition.digest.hex()));
    std::fs::create_dir(&in_the_way).unwrap();
    let web = bed.accept("web", 1, 2, mounting("app:1", edition));
    bed.assign(&[web]);
    bed.until("told", |report| {
        report.conditions.iter().any(|one| one.reason == "DiskUnwritable")
    })
    .await;
    bed.engine.crash(WEB, 3);
    bed.engine_until("started again", |engine| {
        let starts = engine.calls().iter().filter(|call| call.starts_with("start")).count();
        // A call is noted before it has done anything.
        starts == 2 && engine.running() == [WEB.to_owned()].into()
    })
    .await;
    assert_eq!(bed.sees(WEB, "/etc/conf"), Some((b"one".to_vec(), 0o440)));
    std::fs::remove_dir(&in_the_way).unwrap();
    bed.until("goes on by itself", |report| {
        one(report).is_some_and(|line| line.n == 2 && line.ready)
    })
    .await;
    assert_eq!(bed.sees("default.web.1.2", "/etc/conf"), Some((b"two".to_vec(), 0o440)));
    bed.stop().await;
}
