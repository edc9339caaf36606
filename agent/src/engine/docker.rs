//! A real Docker engine behind [`ContainerRuntime`], through bollard where its types are open enough and plain JSON where
//! a newer engine's answer could close them. Made without touching the engine: it may be down, and come later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use bollard::query_parameters::{
    KillContainerOptions, LogsOptions, RemoveContainerOptions, RenameContainerOptions, StartContainerOptions,
    StopContainerOptions,
};
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, BoxStream};
use planner::network::policy::network_options;
use planner::node::LABEL_NODE;
use schemas::container::ContainerSpec;
use schemas::image::ImageRef;
use schemas::names::{InstanceName, Namespace};
use schemas::records::InstanceCondition;
use schemas::records::network::{address6, gateway};
use serde_json::{Map, Value, json};

use super::answers::{self, DEFAULT_BLKIO_WEIGHT, DEFAULT_CPU_PERIOD, DEFAULT_CPU_SHARES};
use super::credentials::Credentials;
use super::listen::Listener;
use super::near::Near;
use super::wire::{Address, Call, Wire, encode, within};
use super::{
    CLUSTER_LABEL, ContainerRuntime, CreateRequest, Created, EngineError, EngineInfo, EngineVersion, ErrorKind, Event,
    ExecEnd, Ground, Inspection, Limits, LocalImage, OLDEST_API, Observed, ProgressSink, Result, Seat, Stats, clean,
    pull, translate,
};
use crate::logins::Login;

/// Where an engine is when nothing is said.
pub const DEFAULT_ADDRESS: &str = "unix:///var/run/docker.sock";

/// The label of a network that says whose it is, beside the cluster's.
const NAMESPACE_LABEL: &str = "reeve.namespace";
/// Deadlines: of what only reads, of what makes or starts, and beyond the grace period of a stop.
const READ: Duration = Duration::from_secs(15);
const LIST: Duration = Duration::from_secs(30);
const WORK: Duration = Duration::from_secs(120);
const STOP_SLACK: Duration = Duration::from_secs(20);
/// bollard's own deadline is beyond all of ours.
const BOLLARD_SECONDS: u64 = 100_000;
/// The most that is read of logs or of a command's output, in bytes.
const MAX_OUTPUT: usize = 256 << 10;
const MAX_LINE_CHARACTERS: usize = 256;
/// Memory beyond any host, of whole pages: how a limit is taken back.
const NO_MEMORY_LIMIT: i64 = i64::MAX - 4_095;

/// One Docker engine.
pub struct Docker {
    wire: Wire,
    bollard: bollard::Docker,
    credentials: Credentials,
    version: Mutex<Option<EngineVersion>>,
    cpus: Mutex<Option<u32>>,
    /// Networks known to exist.
    networks: Mutex<BTreeSet<String>>,
    /// Whoever makes a network holds its lock, so that none is made twice and a call that hangs delays that one only.
    making: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Commands that outlived their deadline, by container: no second one is begun beside them.
    hung: Mutex<BTreeMap<String, String>>,
    near: Near,
}

impl Docker {
    /// An engine at `unix:///path` or `tcp://host:port`; the error is one sentence with the remedy.
    pub fn new(address: &str) -> std::result::Result<Self, String> {
        let wire = Wire {
            address: Address::parse(address)?,
        };
        let transport = wire.clone();
        let bollard = bollard::Docker::connect_with_custom_transport(
            move |request| transport.clone().send(request),
            Some("http://docker"),
            BOLLARD_SECONDS,
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(|error| format!("prepare the way to the engine at {}: {error}", wire.address))?;
        Ok(Self {
            near: Near::new(wire.clone()),
            wire,
            bollard,
            credentials: Credentials::of_this_host(),
            version: Mutex::default(),
            cpus: Mutex::default(),
            networks: Mutex::default(),
            making: Mutex::default(),
            hung: Mutex::default(),
        })
    }

    /// The same with the registry credentials of another directory than the host's own.
    #[must_use]
    pub fn with_credentials(mut self, directory: std::path::PathBuf) -> Self {
        self.credentials = Credentials::in_directory(Some(directory));
        self
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> String {
        self.wire.address.to_string()
    }

    async fn read_version(&self) -> Result<EngineVersion> {
        let act = "ask the engine's version";
        let answer = self.wire.call(act, READ, Call::get("/version")).await?;
        let version = answers::version(&answer).ok_or_else(|| {
            EngineError::new(
                ErrorKind::Other,
                act,
                &format!("{} is no Docker engine", self.wire.address),
            )
        })?;
        if version.api < OLDEST_API {
            let said = format!(
                "Docker {} speaks API {}.{}, and 1.41 (Docker 20.10) is the oldest that is supported",
                version.version, version.api.0, version.api.1
            );
            return Err(EngineError::new(ErrorKind::TooOld, act, &said));
        }
        *lock(&self.version) = Some(version.clone());
        Ok(version)
    }

    async fn api(&self) -> Result<(u32, u32)> {
        let known = lock(&self.version).as_ref().map(|version| version.api);
        match known {
            Some(api) => Ok(api),
            None => Ok(self.read_version().await?.api),
        }
    }

    async fn read_info(&self) -> Result<EngineInfo> {
        let version = self.read_version().await?;
        let answer = self
            .wire
            .call("ask what the host has", LIST, Call::get("/info"))
            .await?;
        let mut info = answers::info(&answer, version);
        *lock(&self.cpus) = Some(info.cpus);
        if matches!(self.wire.address, Address::Unix(_)) {
            let root = info.root.clone();
            let free = tokio::task::spawn_blocking(move || {
                rustix::fs::statvfs(root.as_str())
                    .ok()
                    .map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize))
            });
            info.disk_free_bytes = free.await.ok().flatten();
        }
        Ok(info)
    }

    async fn read_list(&self, cluster: &str) -> Result<Vec<Observed>> {
        let filters = json!({ "label": [format!("{CLUSTER_LABEL}={cluster}")] }).to_string();
        let path = format!("/containers/json?all=true&filters={}", encode(&filters));
        let answer = self.wire.call("list containers", LIST, Call::get(&path)).await?;
        Ok(answers::list(&answer))
    }

    async fn read_container(&self, container: &str) -> Result<Inspection> {
        let act = format!("inspect container `{}`", short(container));
        let answer = self
            .wire
            .call(
                &act,
                READ,
                Call::get(&format!("/containers/{}/json", encode(container))),
            )
            .await?;
        let cpus = *lock(&self.cpus);
        let mut inspection = answers::inspection(answer)
            .ok_or_else(|| EngineError::new(ErrorKind::Other, &act, "its answer has no id"))?;
        if let (Some(cpus), Some(details)) = (cpus, inspection.observed.details.as_mut()) {
            answers::whole_host_is_no_limit(&mut details.limits, cpus);
        }
        Ok(inspection)
    }

    async fn make(&self, request: CreateRequest<'_>) -> Result<Created> {
        let act = format!("create container `{}`", request.name);
        let api = self.api().await?;
        let (body, mut conditions) = translate::create_body(&request, api)
            .map_err(|error| EngineError::new(ErrorKind::Refused, &act, &error.to_string()))?;
        request.admit(&act, &body).await?;
        let path = format!("/containers/create?name={}", encode(request.name));
        let answer = match self.wire.call(&act, WORK, Call::post(&path, Some(&body))).await {
            Ok(answer) => answer,
            Err(error) => return Err(self.heed(error)),
        };
        let id = answer["Id"].as_str().filter(|id| !id.is_empty());
        let id = id
            .ok_or_else(|| EngineError::new(ErrorKind::Other, &act, "its answer has no id"))?
            .to_owned();
        conditions.extend(translate::discarded(&warnings(&answer)));
        Ok(Created { id, conditions })
    }

    /// A missing network is made again next time.
    fn heed(&self, error: EngineError) -> EngineError {
        if error.kind == ErrorKind::NotFound && error.said.contains("network") {
            lock(&self.networks).clear();
        }
        error
    }

    async fn set_limits(&self, id: &str, spec: &ContainerSpec) -> Result<Vec<InstanceCondition>> {
        let act = format!("update the limits of container `{}`", short(id));
        if lock(&self.cpus).is_none() {
            self.read_info().await?;
        }
        let cpus = lock(&self.cpus).unwrap_or(1);
        let observed = self
            .read_container(id)
            .await?
            .observed
            .details
            .map(|details| details.limits)
            .unwrap_or_default();
        let body = update_body(&translate::limits(spec), &observed, cpus);
        let path = format!("/containers/{}/update", encode(id));
        let answer = self.wire.call(&act, WORK, Call::post(&path, Some(&body))).await?;
        Ok(translate::discarded(&warnings(&answer)))
    }

    async fn network(&self, cluster: &str, namespace: &Namespace) -> Result<()> {
        let name = translate::network_name(cluster, namespace);
        if lock(&self.networks).contains(&name) {
            return Ok(());
        }
        let turn = lock(&self.making).entry(name.clone()).or_default().clone();
        let _turn = turn.lock().await;
        if lock(&self.networks).contains(&name) {
            return Ok(());
        }
        let act = format!("make network `{name}`");
        let path = format!("/networks/{}", encode(&name));
        let body = json!({
            "Name": name,
            "CheckDuplicate": true,
            "Driver": "bridge",
            // By which the packet filter knows our networks.
            "Options": { "com.docker.network.bridge.name": bridge() },
            "Labels": { CLUSTER_LABEL: cluster, NAMESPACE_LABEL: namespace.as_str() },
        });
        // The second look is for one that another process made in between.
        for _ in 0..2 {
            match self.wire.call(&act, READ, Call::get(&path)).await {
                Ok(answer) if answer["Labels"][CLUSTER_LABEL].as_str() == Some(cluster) => {
                    lock(&self.networks).insert(name);
                    return Ok(());
                }
                Ok(_) => {
                    let said = format!(
                        "a network of that name exists and is not this cluster's: remove it with `docker network rm {name}`"
                    );
                    return Err(EngineError::new(ErrorKind::Conflict { holder: None }, &act, &said));
                }
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            match self
                .wire
                .call(&act, WORK, Call::post("/networks/create", Some(&body)))
                .await
            {
                Ok(_) => {
                    lock(&self.networks).insert(name);
                    return Ok(());
                }
                Err(error) if matches!(error.kind, ErrorKind::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(EngineError::new(
            ErrorKind::Other,
            &act,
            "it is neither there nor can it be made",
        ))
    }

    /// What to post for the node's end of the cluster's network.
    fn ground_body(ground: &Ground, api: (u32, u32)) -> Value {
        let config = |subnet: String, gateway: String| json!({ "Subnet": subnet, "Gateway": gateway });
        let mut configs = vec![config(ground.subnet.to_string(), gateway(&ground.subnet).to_string())];
        if let Some(subnet6) = &ground.subnet6 {
            let own = address6(gateway(&ground.subnet), &ground.subnet, subnet6);
            configs.push(config(subnet6.to_string(), own.to_string()));
        }
        json!({
            "Name": ground.name(),
            "CheckDuplicate": true,
            "Driver": "bridge",
            "EnableIPv6": ground.subnet6.is_some(),
            "IPAM": { "Driver": "default", "Config": configs },
            "Options": network_options(api, &ground.bridge(), Some(ground.mtu)),
            "Labels": { CLUSTER_LABEL: ground.cluster.as_str(), LABEL_NODE: ground.node.as_str() },
        })
    }

    async fn ground(&self, ground: &Ground) -> Result<()> {
        let name = ground.name();
        if lock(&self.networks).contains(&name) {
            return Ok(());
        }
        let turn = lock(&self.making).entry(name.clone()).or_default().clone();
        let _turn = turn.lock().await;
        let act = format!("make network `{name}`");
        let path = format!("/networks/{}", encode(&name));
        let body = Self::ground_body(ground, self.api().await?);
        for _ in 0..3 {
            match self.wire.call(&act, READ, Call::get(&path)).await {
                Ok(found) => {
                    let ours = found["Labels"][CLUSTER_LABEL].as_str() == Some(ground.cluster.as_str())
                        && found["Labels"][LABEL_NODE].as_str() == Some(ground.node.as_str());
                    if !ours {
                        let said = format!(
                            "a network of that name exists and is not this node's: remove it with `docker network rm {name}`"
                        );
                        return Err(EngineError::new(ErrorKind::Conflict { holder: None }, &act, &said));
                    }
                    let subnets = |value: &Value| -> BTreeSet<String> {
                        let all = value["IPAM"]["Config"].as_array().into_iter().flatten();
                        all.filter_map(|one| one["Subnet"].as_str().map(str::to_owned))
                            .collect()
                    };
                    if subnets(&found) == subnets(&body) {
                        lock(&self.networks).insert(name);
                        return Ok(());
                    }
                    // Of another time: its subnet has become somebody else's.
                    self.wire.call(&act, READ, Call::delete(&path)).await?;
                }
                Err(error) if error.kind == ErrorKind::NotFound => {
                    let made = self.wire.call(&act, WORK, Call::post("/networks/create", Some(&body)));
                    match made.await {
                        Ok(_) => {
                            lock(&self.networks).insert(name);
                            return Ok(());
                        }
                        Err(error) if matches!(error.kind, ErrorKind::Conflict { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(EngineError::new(
            ErrorKind::Other,
            &act,
            "it is neither there nor can it be made",
        ))
    }

    async fn sit(&self, id: &str, seat: &Seat) -> Result<()> {
        let name = seat.ground.name();
        let act = format!("connect container `{}` to network `{name}`", short(id));
        let end = translate::end_of(seat);
        let body = json!({ "Container": id, "EndpointConfig": end });
        let path = format!("/networks/{}/connect", encode(&name));
        let connect = || self.wire.call(&act, WORK, Call::post(&path, Some(&body)));
        match connect().await {
            Ok(_) => return Ok(()),
            Err(error) if error.said.contains("already exists in network") => {}
            Err(error) => return Err(self.heed(error)),
        }
        // It is there, perhaps at another's address.
        let found = self
            .wire
            .call(&act, READ, Call::get(&format!("/containers/{}/json", encode(id))))
            .await?;
        let at = found["NetworkSettings"]["Networks"][name.as_str()]["IPAMConfig"]["IPv4Address"].as_str();
        if at == Some(seat.address.to_string().as_str()) {
            return Ok(());
        }
        let away = json!({ "Container": id, "Force": true });
        let path = format!("/networks/{}/disconnect", encode(&name));
        self.wire.call(&act, WORK, Call::post(&path, Some(&away))).await?;
        connect().await.map(drop).map_err(|error| self.heed(error))
    }

    async fn drop_others(&self, cluster: &str, keep: &BTreeSet<Namespace>) -> Result<()> {
        let kept: BTreeSet<String> = keep.iter().map(|one| translate::network_name(cluster, one)).collect();
        // Whoever wants one of the others from now on asks the engine, after us or before us.
        lock(&self.networks).retain(|name| kept.contains(name));
        let filters = json!({ "label": [format!("{CLUSTER_LABEL}={cluster}")] }).to_string();
        let path = format!("/networks?filters={}", encode(&filters));
        let listed = self.wire.call("list networks", READ, Call::get(&path)).await?;
        for one in listed.as_array().into_iter().flatten() {
            let (Some(id), Some(name)) = (one["Id"].as_str(), one["Name"].as_str()) else {
                continue;
            };
            let namespace: Option<Namespace> = one["Labels"][NAMESPACE_LABEL]
                .as_str()
                .and_then(|text| text.parse().ok());
            let named = namespace.is_some_and(|namespace| translate::network_name(cluster, &namespace) == name);
            let ours = named && one["Labels"][CLUSTER_LABEL].as_str() == Some(cluster);
            if !ours || kept.contains(name) {
                continue;
            }
            let turn = lock(&self.making).entry(name.to_owned()).or_default().clone();
            let _turn = turn.lock().await;
            if lock(&self.networks).contains(name) {
                continue;
            }
            let act = format!("remove network `{name}`");
            match self
                .wire
                .call(&act, READ, Call::delete(&format!("/networks/{}", encode(id))))
                .await
            {
                Ok(_) => tracing::info!("network `{name}` is removed: nothing here is in its namespace any more"),
                // Somebody's container is in it.
                Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::Conflict { .. }) => {
                    tracing::debug!("{error}");
                }
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn join(&self, cluster: &str, id: &str, instance: &InstanceName) -> Result<()> {
        let name = translate::network_name(cluster, &instance.namespace);
        let act = format!("connect container `{}` to network `{name}`", short(id));
        let body = json!({ "Container": id, "EndpointConfig": { "Aliases": translate::aliases(instance) } });
        let path = format!("/networks/{}/connect", encode(&name));
        match self.wire.call(&act, WORK, Call::post(&path, Some(&body))).await {
            Ok(_) => Ok(()),
            Err(error) if error.said.contains("already exists in network") => Ok(()),
            Err(error) => Err(self.heed(error)),
        }
    }

    /// A call of bollard's with a deadline, in our errors.
    async fn told<T>(
        &self,
        act: &str,
        deadline: Duration,
        call: impl Future<Output = std::result::Result<T, bollard::errors::Error>>,
    ) -> Result<T> {
        within(act, deadline, async {
            call.await.map_err(|error| self.wire.failed(act, &error))
        })
        .await
    }

    async fn last_lines(&self, id: &str, lines: usize) -> Result<Vec<String>> {
        let act = format!("read the log of container `{}`", short(id));
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            tail: lines.min(1_000).to_string(),
            ..LogsOptions::default()
        };
        let mut output = Tail::default();
        let read = within(&act, READ, async {
            let mut stream = self.bollard.logs(id, Some(options));
            while let Some(part) = stream.next().await {
                output.take(&part.map_err(|error| self.wire.failed(&act, &error))?);
            }
            Ok(())
        });
        match read.await {
            Ok(()) => Ok(output.lines(lines)),
            Err(error) if error.said.contains("does not support reading") => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn run(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecEnd> {
        let act = format!(
            "run `{}` in container `{}`",
            clean(command.first().map_or("", String::as_str), 64),
            short(id)
        );
        let earlier = lock(&self.hung).get(id).cloned();
        if let Some(exec) = earlier {
            let running = match self.told(&act, READ, self.bollard.inspect_exec(&exec)).await {
                Ok(answer) => answer.running.unwrap_or(false),
                Err(error) if error.kind == ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            if running {
                return Err(EngineError::new(
                    ErrorKind::Timeout,
                    &act,
                    "the one before it has still not ended",
                ));
            }
            lock(&self.hung).remove(id);
        }
        let config = ExecConfig {
            cmd: Some(command.to_vec()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..ExecConfig::default()
        };
        let mut begun = None;
        let work = async {
            let exec = self
                .bollard
                .create_exec(id, config)
                .await
                .map_err(|error| self.wire.failed(&act, &error))?
                .id;
            begun = Some(exec.clone());
            let options = StartExecOptions {
                detach: false,
                ..StartExecOptions::default()
            };
            let started = self
                .bollard
                .start_exec(&exec, Some(options))
                .await
                .map_err(|error| self.wire.failed(&act, &error))?;
            let mut tail = Tail::default();
            if let StartExecResults::Attached { mut output, .. } = started {
                while let Some(Ok(part)) = output.next().await {
                    tail.take(&part);
                }
            }
            let end = self
                .bollard
                .inspect_exec(&exec)
                .await
                .map_err(|error| self.wire.failed(&act, &error))?;
            let code = end
                .exit_code
                .ok_or_else(|| EngineError::new(ErrorKind::Other, &act, "it ended without a code"))?;
            Ok(ExecEnd {
                code,
                output: tail.lines(1).pop().unwrap_or_default(),
            })
        };
        let ended = within(&act, timeout, work).await;
        if let (
            Err(EngineError {
                kind: ErrorKind::Timeout,
                ..
            }),
            Some(exec),
        ) = (&ended, begun)
        {
            lock(&self.hung).insert(id.to_owned(), exec);
        }
        ended
    }

    async fn sample(&self, id: &str) -> Result<Stats> {
        let act = format!("read the use of container `{}`", short(id));
        let path = format!("/containers/{}/stats?stream=false&one-shot=true", encode(id));
        Ok(answers::stats(&self.wire.call(&act, READ, Call::get(&path)).await?))
    }
}

impl ContainerRuntime for Docker {
    fn version(&self) -> BoxFuture<'_, Result<EngineVersion>> {
        self.read_version().boxed()
    }
    fn info(&self) -> BoxFuture<'_, Result<EngineInfo>> {
        self.read_info().boxed()
    }
    fn list<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<Vec<Observed>>> {
        self.read_list(cluster).boxed()
    }
    fn inspect<'a>(&'a self, container: &'a str) -> BoxFuture<'a, Result<Inspection>> {
        self.read_container(container).boxed()
    }
    fn create<'a>(&'a self, request: CreateRequest<'a>) -> BoxFuture<'a, Result<Created>> {
        self.make(request).boxed()
    }
    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let act = format!("start container `{}`", short(id));
            let started = self
                .told(
                    &act,
                    WORK,
                    self.bollard.start_container(id, None::<StartContainerOptions>),
                )
                .await;
            match started {
                Ok(()) => Ok(()),
                Err(error) => Err(self.heed(error)),
            }
        }
        .boxed()
    }
    fn stop<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, Result<()>> {
        async move {
            let act = format!("stop container `{}`", short(id));
            let seconds = translate::seconds_up(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
            let options = StopContainerOptions {
                signal: None,
                t: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            };
            let deadline = grace.saturating_add(STOP_SLACK);
            gone_is_done(
                self.told(&act, deadline, self.bollard.stop_container(id, Some(options)))
                    .await,
            )
        }
        .boxed()
    }
    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let act = format!("kill container `{}`", short(id));
            let options = KillContainerOptions {
                signal: "SIGKILL".to_owned(),
            };
            match gone_is_done(
                self.told(&act, READ, self.bollard.kill_container(id, Some(options)))
                    .await,
            ) {
                Err(error) if error.said.contains("is not running") => Ok(()),
                other => other,
            }
        }
        .boxed()
    }
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let act = format!("remove container `{}`", short(id));
            let options = RemoveContainerOptions {
                v: false,
                force: false,
                link: false,
            };
            self.near.read_out(id).await;
            match gone_is_done(
                self.told(&act, WORK, self.bollard.remove_container(id, Some(options)))
                    .await,
            ) {
                Err(error) if error.said.contains("is already in progress") => Ok(()),
                other => other,
            }
        }
        .boxed()
    }
    fn unpause<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let act = format!("unpause container `{}`", short(id));
            match self.told(&act, READ, self.bollard.unpause_container(id)).await {
                Err(error) if error.said.contains("is not paused") => Ok(()),
                other => other,
            }
        }
        .boxed()
    }
    fn rename<'a>(&'a self, id: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let act = format!("rename container `{}` to `{name}`", short(id));
            let options = RenameContainerOptions { name: name.to_owned() };
            self.told(&act, READ, self.bollard.rename_container(id, options)).await
        }
        .boxed()
    }
    fn update_limits<'a>(
        &'a self,
        id: &'a str,
        spec: &'a ContainerSpec,
    ) -> BoxFuture<'a, Result<Vec<InstanceCondition>>> {
        self.set_limits(id, spec).boxed()
    }
    fn ensure_network<'a>(&'a self, cluster: &'a str, namespace: &'a Namespace) -> BoxFuture<'a, Result<()>> {
        self.network(cluster, namespace).boxed()
    }
    fn ensure_ground<'a>(&'a self, ground: &'a Ground) -> BoxFuture<'a, Result<()>> {
        self.ground(ground).boxed()
    }
    fn take_seat<'a>(&'a self, id: &'a str, seat: &'a Seat) -> BoxFuture<'a, Result<()>> {
        self.sit(id, seat).boxed()
    }
    fn drop_networks<'a>(&'a self, cluster: &'a str, keep: &'a BTreeSet<Namespace>) -> BoxFuture<'a, Result<()>> {
        self.drop_others(cluster, keep).boxed()
    }
    fn connect<'a>(&'a self, cluster: &'a str, id: &'a str, instance: &'a InstanceName) -> BoxFuture<'a, Result<()>> {
        self.join(cluster, id, instance).boxed()
    }
    fn pull<'a>(
        &'a self,
        image: &'a ImageRef,
        login: Option<&'a Login>,
        progress: ProgressSink,
    ) -> BoxFuture<'a, Result<LocalImage>> {
        async move { pull::pull(&self.wire, &self.credentials, image, login, &progress).await }.boxed()
    }
    fn image<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<Option<LocalImage>>> {
        pull::look_up(&self.wire, image).boxed()
    }
    fn logs<'a>(&'a self, id: &'a str, lines: usize) -> BoxFuture<'a, Result<Vec<String>>> {
        self.last_lines(id, lines).boxed()
    }
    fn exec<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> BoxFuture<'a, Result<ExecEnd>> {
        self.run(id, command, timeout).boxed()
    }
    fn stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Stats>> {
        self.sample(id).boxed()
    }
    fn near(&self) -> Option<Near> {
        Some(self.near.clone())
    }
    fn events(&self, cluster: &str) -> BoxStream<'static, Event> {
        let listener = Listener::new(self.wire.clone(), cluster.to_owned());
        stream::unfold(listener, |mut listener| async move {
            Some((listener.next().await, listener))
        })
        .boxed()
    }
}

/// A name for a network's bridge, at most 15 letters. Hosts may share a kernel's names, so it is drawn.
fn bridge() -> String {
    let drawn = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let digits: String = drawn.chars().filter(char::is_ascii_hexdigit).take(10).collect();
    format!("{}{digits}", planner::walls::BRIDGES)
}

/// What to post to `update`: what is wanted, and for each limit that is there and not wanted the value that means none.
fn update_body(desired: &Limits, observed: &Limits, cpus: u32) -> Value {
    let mut body = Map::new();
    translate::limits_into(&mut body, desired);
    let mut take_back = |key: &str, wanted: i64, found: i64, none: i64| {
        if wanted == 0 && found != 0 {
            body.insert(key.to_owned(), json!(none));
        }
    };
    take_back(
        "NanoCpus",
        desired.nano_cpus,
        observed.nano_cpus,
        i64::from(cpus.max(1)) * 1_000_000_000,
    );
    take_back("CpuShares", desired.cpu_shares, observed.cpu_shares, DEFAULT_CPU_SHARES);
    take_back("CpuQuota", desired.cpu_quota, observed.cpu_quota, -1);
    take_back("CpuPeriod", desired.cpu_period, observed.cpu_period, DEFAULT_CPU_PERIOD);
    take_back(
        "BlkioWeight",
        desired.blkio_weight,
        observed.blkio_weight,
        DEFAULT_BLKIO_WEIGHT,
    );
    take_back("PidsLimit", desired.pids_limit, observed.pids_limit, -1);
    take_back("Memory", desired.memory, observed.memory, NO_MEMORY_LIMIT);
    let reservation = if desired.memory == 0 {
        NO_MEMORY_LIMIT
    } else {
        desired.memory
    };
    take_back(
        "MemoryReservation",
        desired.memory_reservation,
        observed.memory_reservation,
        reservation,
    );
    // "-1" reaches no running container: what is unlimited is a number beyond any host here.
    let swap = match (desired.memory_swap, desired.memory) {
        (-1, _) => NO_MEMORY_LIMIT,
        (0, 0) if observed.memory == 0 && observed.memory_swap == 0 => 0,
        (0, 0) => NO_MEMORY_LIMIT,
        // The engine's own default beside a memory limit.
        (0, memory) => memory.saturating_mul(2),
        (swap, _) => swap,
    };
    if swap != 0 {
        body.insert("MemorySwap".into(), json!(swap));
    }
    if desired.cpuset_cpus.is_empty() && !observed.cpuset_cpus.is_empty() {
        body.insert("CpusetCpus".into(), json!(answers::every_core(cpus)));
    }
    body.insert("RestartPolicy".into(), json!({ "Name": "no" }));
    Value::Object(body)
}

/// The last bytes of an output.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    fn take(&mut self, part: &LogOutput) {
        let message = match part {
            LogOutput::StdErr { message }
            | LogOutput::StdOut { message }
            | LogOutput::StdIn { message }
            | LogOutput::Console { message } => message,
        };
        self.bytes.extend_from_slice(message);
        if self.bytes.len() > MAX_OUTPUT {
            self.bytes.drain(..self.bytes.len() - MAX_OUTPUT / 2);
        }
    }

    fn lines(&self, most: usize) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.bytes);
        let lines: Vec<String> = text
            .lines()
            .map(|line| clean(line, MAX_LINE_CHARACTERS))
            .filter(|line| !line.is_empty())
            .collect();
        lines[lines.len().saturating_sub(most)..].to_vec()
    }
}

fn warnings(answer: &Value) -> Vec<String> {
    answer["Warnings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|text| text.as_str().map(str::to_owned))
        .collect()
}

fn gone_is_done(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// An id as people see it; names stay.
fn short(container: &str) -> &str {
    let is_id = container.len() == 64 && container.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { &container[..12] } else { container }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics while holding one; if it did, the value would still be whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engine for an agent: at `address`, else DOCKER_HOST, else the usual socket.
pub fn connect(address: Option<&str>) -> std::result::Result<Arc<Docker>, String> {
    let variable = std::env::var("DOCKER_HOST").ok().filter(|value| !value.is_empty());
    Docker::new(address.or(variable.as_deref()).unwrap_or(DEFAULT_ADDRESS)).map(Arc::new)
}
