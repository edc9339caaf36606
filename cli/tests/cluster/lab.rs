//! A whole cluster in the test's own process: the embedded store, a controller, and an agent on an engine in memory. The
//! tests of the binary that need one begin here, and add what only they need.

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::engine::ContainerRuntime;
use agent::engine::fake::FakeEngine;
use runtime::{EtcdStore, Prefix, Shutdown, Store};
use schemas::keys::Root;
use tempfile::TempDir;

use crate::common;

pub struct Lab {
    pub endpoint: String,
    pub dir: TempDir,
    pub store: EtcdStore,
    pub engine: Arc<FakeEngine>,
    /// How wide the terminal is.
    columns: &'static str,
    shutdown: Shutdown,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Lab {
    /// A cluster of one node whose engine has these images.
    pub fn with(images: &[&str], columns: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (endpoint, store, runtime) = common::serve(dir.path());
        let lab = Self {
            endpoint,
            dir,
            store: store.clone(),
            engine: Arc::new(FakeEngine::with_images(images)),
            columns,
            shutdown: Shutdown::new(),
            runtime: Some(runtime),
        };
        lab.exits(0, &["init"]);
        let rt = lab.runtime.as_ref().expect("the runtime ends with the lab");
        let mut options = controller::ControllerOptions::new(store.clone(), Root::default(), "test");
        options.http_addr = Some(([127, 0, 0, 1], 0).into());
        options.vault = Some(vault());
        rt.spawn(controller::run(options, lab.shutdown.clone()));
        let node = "n1".parse().expect("a name");
        let mut options = agent::AgentOptions::new(node, lab.dir.path().join("agent"));
        options.sweep = Duration::from_secs(1);
        let engine: Arc<dyn ContainerRuntime> = lab.engine.clone();
        rt.spawn(agent::run(options, store, engine, lab.shutdown.clone()));
        lab.until("the node is there", || lab.out(&["get", "nodes"]).contains("Ready"));
        lab
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reeve"));
        command
            .args(args)
            .env("NO_COLOR", "1")
            .env("COLUMNS", self.columns)
            .env("HOME", self.dir.path())
            .env("REEVE_ETCD", &self.endpoint)
            .env_remove("REEVE_NAMESPACE");
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("reeve starts")
    }

    pub fn out(&self, args: &[&str]) -> String {
        all(&self.run(args))
    }

    /// It must exit with this code; all that it printed.
    pub fn exits(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let text = all(&output);
        assert_eq!(output.status.code(), Some(code), "reeve {args:?}\n{text}");
        text
    }

    pub fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(
                Instant::now() < deadline,
                "{what}: not in time: {}",
                self.out(&["status"])
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Does something with the store, past the binary.
    pub fn on<F: Future>(&self, future: F) -> F::Output {
        let runtime = self.runtime.as_ref().expect("the runtime ends with the lab");
        runtime.block_on(future)
    }

    /// How many keys are under a prefix.
    pub fn count(&self, prefix: &str) -> usize {
        let prefix = Prefix::new(prefix).expect("a prefix");
        self.on(self.store.list(&prefix)).expect("a list").kvs.len()
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.display().to_string()
    }
}

/// What a controller without authorities seals with.
fn vault() -> controller::VaultOptions {
    let key = Arc::new(trust::seal::SealingKey::generate().expect("randomness"));
    let published = trust::publish::plain(key.public());
    controller::VaultOptions {
        key,
        published: Arc::new(move || published.clone()),
        believed: Arc::new(|cluster| Some(trust::publish::Believed::Store(cluster))),
    }
}

/// All that it printed, errors after output.
fn all(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.shutdown.abort();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
