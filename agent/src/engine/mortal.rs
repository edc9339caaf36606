//! The engine as a mortal agent sees it: after its end no call has an effect, and none is answered. Every create is checked
//! for its intent in the ledger on disk.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::BoxStream;
use schemas::container::ContainerSpec;
use schemas::image::ImageRef;
use schemas::names::{InstanceName, Namespace};
use schemas::records::InstanceCondition;

use crate::cut::Cut;
use crate::engine::fake::FakeEngine;
use crate::engine::*;
use crate::logins::Login;

/// How long a call of a verb takes.
pub type Pace = Arc<dyn Fn(&'static str) -> Duration + Send + Sync>;

pub struct Mortal {
    engine: FakeEngine,
    cut: Cut,
    dir: PathBuf,
    pace: Option<Pace>,
}

impl Mortal {
    pub fn new(engine: FakeEngine, cut: Cut, dir: &Path) -> Self {
        Self {
            engine,
            cut,
            dir: dir.to_owned(),
            pace: None,
        }
    }

    /// With calls that take their time.
    #[must_use]
    pub fn paced(mut self, pace: Pace) -> Self {
        self.pace = Some(pace);
        self
    }

    async fn takes(&self, verb: &'static str) {
        if let Some(pace) = &self.pace {
            tokio::time::sleep(pace(verb)).await;
        }
    }

    async fn reads<T>(&self, verb: &'static str, call: impl Future<Output = T>) -> T {
        if self.cut.is_dead() {
            std::future::pending::<()>().await;
        }
        self.takes(verb).await;
        let answer = call.await;
        if self.cut.is_dead() {
            std::future::pending::<()>().await;
        }
        answer
    }

    async fn acts<T>(&self, verb: &'static str, call: impl Future<Output = T>) -> T {
        if self.cut.is_dead() {
            std::future::pending::<()>().await;
        }
        self.takes(verb).await;
        if self.cut.is_dead() {
            std::future::pending::<()>().await;
        }
        let answer = call.await;
        if self.cut.effect() {
            std::future::pending::<()>().await;
        }
        answer
    }

    /// Law 8: the intent is on disk before the create.
    fn check_intent(&self, request: &CreateRequest<'_>) {
        let text = std::fs::read_to_string(self.dir.join("ledger.json")).unwrap_or_default();
        let ledger: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let intended = ledger["instances"].as_array().into_iter().flatten().any(|line| {
            let key = &line["instance"];
            let name = format!(
                "{}.{}.{}.{}",
                key["namespace"].as_str().unwrap_or_default(),
                key["workload"].as_str().unwrap_or_default(),
                key["slot"].as_str().unwrap_or_default(),
                line["container"]["spec"]["n"]
            );
            name == request.name && line["container"]["id"].is_null()
        });
        assert!(intended, "no intent on disk for {}: {text}", request.name);
    }
}

impl ContainerRuntime for Mortal {
    fn version(&self) -> BoxFuture<'_, Result<EngineVersion>> {
        self.reads("version", self.engine.version()).boxed()
    }
    fn info(&self) -> BoxFuture<'_, Result<EngineInfo>> {
        self.reads("info", self.engine.info()).boxed()
    }
    fn list<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<Vec<Observed>>> {
        self.reads("list", self.engine.list(cluster)).boxed()
    }
    fn inspect<'a>(&'a self, container: &'a str) -> BoxFuture<'a, Result<Inspection>> {
        self.reads("inspect", self.engine.inspect(container)).boxed()
    }
    fn create<'a>(&'a self, request: CreateRequest<'a>) -> BoxFuture<'a, Result<Created>> {
        async move {
            if !self.cut.is_dead() {
                self.check_intent(&request);
            }
            self.acts("create", self.engine.create(request)).await
        }
        .boxed()
    }
    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        self.acts("start", self.engine.start(id)).boxed()
    }
    fn stop<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, Result<()>> {
        self.acts("stop", self.engine.stop(id, grace)).boxed()
    }
    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        self.acts("kill", self.engine.kill(id)).boxed()
    }
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        self.acts("remove", self.engine.remove(id)).boxed()
    }
    fn unpause<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        self.acts("unpause", self.engine.unpause(id)).boxed()
    }
    fn rename<'a>(&'a self, id: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        self.acts("rename", self.engine.rename(id, name)).boxed()
    }
    fn update_limits<'a>(
        &'a self,
        id: &'a str,
        spec: &'a ContainerSpec,
    ) -> BoxFuture<'a, Result<Vec<InstanceCondition>>> {
        self.acts("update_limits", self.engine.update_limits(id, spec)).boxed()
    }
    fn ensure_network<'a>(&'a self, cluster: &'a str, namespace: &'a Namespace) -> BoxFuture<'a, Result<()>> {
        self.acts("ensure_network", self.engine.ensure_network(cluster, namespace))
            .boxed()
    }
    fn ensure_ground<'a>(&'a self, ground: &'a Ground) -> BoxFuture<'a, Result<()>> {
        self.acts("ensure_ground", self.engine.ensure_ground(ground)).boxed()
    }
    fn take_seat<'a>(&'a self, id: &'a str, seat: &'a Seat) -> BoxFuture<'a, Result<()>> {
        self.acts("take_seat", self.engine.take_seat(id, seat)).boxed()
    }
    fn drop_networks<'a>(&'a self, cluster: &'a str, keep: &'a BTreeSet<Namespace>) -> BoxFuture<'a, Result<()>> {
        self.acts("drop_networks", self.engine.drop_networks(cluster, keep))
            .boxed()
    }
    fn connect<'a>(&'a self, cluster: &'a str, id: &'a str, instance: &'a InstanceName) -> BoxFuture<'a, Result<()>> {
        self.acts("connect", self.engine.connect(cluster, id, instance)).boxed()
    }
    fn pull<'a>(
        &'a self,
        image: &'a ImageRef,
        login: Option<&'a Login>,
        progress: ProgressSink,
    ) -> BoxFuture<'a, Result<LocalImage>> {
        self.acts("pull", self.engine.pull(image, login, progress)).boxed()
    }
    fn image<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<Option<LocalImage>>> {
        self.reads("image", self.engine.image(image)).boxed()
    }
    fn logs<'a>(&'a self, id: &'a str, lines: usize) -> BoxFuture<'a, Result<Vec<String>>> {
        self.reads("logs", self.engine.logs(id, lines)).boxed()
    }
    fn exec<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> BoxFuture<'a, Result<ExecEnd>> {
        self.reads("exec", self.engine.exec(id, command, timeout)).boxed()
    }
    fn stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Stats>> {
        self.reads("stats", self.engine.stats(id)).boxed()
    }
    fn events(&self, cluster: &str) -> BoxStream<'static, Event> {
        self.engine.events(cluster)
    }
}
