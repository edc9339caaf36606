//! The calls of the engine in memory: what [`ContainerRuntime`] promises, on the world of [`FakeEngine`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, BoxStream};
use schemas::container::ContainerSpec;
use schemas::image::ImageRef;
use schemas::names::{InstanceName, Namespace};
use schemas::records::InstanceCondition;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::super::{
    Action, CLUSTER_LABEL, ContainerRuntime, ContainerState, CreateRequest, Created, Details, EngineError, EngineInfo,
    EngineVersion, ErrorKind, Event, ExecEnd, Ground, ImageId, Inspection, LocalImage, NetworkEnd, Observed,
    ProgressSink, PullProgress, Result, Seat, Stats, translate,
};
use super::{FakeContainer, FakeEngine};
use crate::logins::Login;

fn host_ports(body: &Value) -> BTreeSet<u16> {
    let bindings = body["HostConfig"]["PortBindings"].as_object().into_iter().flatten();
    bindings
        .flat_map(|(_, list)| list.as_array().into_iter().flatten())
        .filter_map(|binding| binding["HostPort"].as_str()?.parse().ok())
        .collect()
}

impl FakeEngine {
    /// Connects a container to a network; one that is there at that address, or at any where none is said, stays as it is.
    fn attach(&self, id: &str, network: &str, at: Option<IpAddr>) -> Result<()> {
        {
            let mut world = self.world();
            if !world.networks.contains_key(network) {
                let said = format!("network {network} not found");
                return Err(EngineError::new(ErrorKind::NotFound, "connect", &said));
            }
            let container = world.get("connect", id)?;
            let address = at.unwrap_or_else(|| Ipv4Addr::new(172, 18, 9, 9).into());
            let addresses = if container.is_up() { vec![address] } else { Vec::new() };
            let networks = &mut container.observed.networks;
            if at.is_some() || !networks.contains_key(network) {
                networks.insert(network.to_owned(), NetworkEnd { addresses });
            }
        }
        self.tell(id, Action::NetworkConnected);
        Ok(())
    }
}

impl ContainerRuntime for FakeEngine {
    fn version(&self) -> BoxFuture<'_, Result<EngineVersion>> {
        async move {
            self.enter("version", "engine", false).await?;
            Ok(EngineVersion {
                version: "20.10.24".into(),
                api: (1, 41),
                os: "linux".into(),
                arch: "amd64".into(),
                kernel: "6.1".into(),
            })
        }
        .boxed()
    }

    fn info(&self) -> BoxFuture<'_, Result<EngineInfo>> {
        async move {
            let version = self.version().await?;
            Ok(EngineInfo {
                version,
                engine_id: "fake".into(),
                hostname: "fake".into(),
                cpus: 4,
                memory_bytes: 8 << 30,
                storage_driver: "overlay2".into(),
                cgroup_version: "2".into(),
                root: "/var/lib/docker".into(),
                disk_free_bytes: Some(self.world().free.unwrap_or(64 << 30)),
                warnings: Vec::new(),
                cgroup_driver: "systemd".into(),
                logging_driver: "json-file".into(),
                live_restore: false,
                user_namespaces: false,
            })
        }
        .boxed()
    }

    fn list<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Result<Vec<Observed>>> {
        async move {
            self.world().lists += 1;
            self.enter("list", cluster, false).await?;
            let mut world = self.world();
            let late = std::mem::take(&mut world.late);
            let ours = world
                .containers
                .values()
                .filter(|one| one.observed.labels.get(CLUSTER_LABEL).is_some_and(|id| id == cluster));
            let listed = ours
                .map(|one| {
                    let mut seen = Observed {
                        details: None,
                        ..one.observed.clone()
                    };
                    if late.contains_key(&seen.id) && matches!(seen.state, ContainerState::Exited { .. }) {
                        seen.state = ContainerState::Running;
                    }
                    seen
                })
                .collect();
            world.late = late
                .into_iter()
                .filter(|(_, left)| *left > 1)
                .map(|(id, left)| (id, left - 1))
                .collect();
            Ok(listed)
        }
        .boxed()
    }

    fn inspect<'a>(&'a self, container: &'a str) -> BoxFuture<'a, Result<Inspection>> {
        async move {
            self.world().inspects += 1;
            self.enter("inspect", container, false).await?;
            let inspection = {
                let mut world = self.world();
                let found = world.get(&format!("inspect container `{container}`"), container)?;
                let up = matches!(found.observed.state, ContainerState::Running | ContainerState::Paused);
                let mut config = found.body.clone();
                let networking = config["NetworkingConfig"]["EndpointsConfig"].take();
                let raw = json!({ "Id": found.observed.id, "Config": config, "HostConfig": found.body["HostConfig"], "NetworkSettings": { "Networks": networking } });
                Inspection {
                    observed: found.observed.clone(),
                    image_id: ImageId(format!("sha256:{}", found.observed.image)),
                    pid: up.then_some(4_242),
                    error: String::new(),
                    raw: Arc::new(raw),
                }
            };
            // An answer that is late tells what was.
            self.enter("inspect answer", container, false).await?;
            Ok(inspection)
        }
        .boxed()
    }

    fn create<'a>(&'a self, request: CreateRequest<'a>) -> BoxFuture<'a, Result<Created>> {
        async move {
            self.enter("create", request.name, true).await?;
            let act = format!("create container `{}`", request.name);
            let (body, conditions) = translate::create_body(&request, (1, 41))
                .map_err(|error| EngineError::new(ErrorKind::Refused, &act, &error.to_string()))?;
            request.admit(&act, &body).await?;
            let id = {
                let mut world = self.world();
                if let Some(holder) = world.by_name(request.name) {
                    let holder = Some(holder.observed.id.clone());
                    return Err(EngineError::new(
                        ErrorKind::Conflict { holder },
                        &act,
                        "the name is already in use",
                    ));
                }
                let image = translate::engine_reference(&request.spec.image);
                let Some(here) = world.images.get(&image) else {
                    return Err(EngineError::new(
                        ErrorKind::ImageNotFound,
                        &act,
                        &format!("No such image: {image}"),
                    ));
                };
                let image_id = here.pin.map(|pin| pin.id);
                let network = body["HostConfig"]["NetworkMode"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                let id = world.new_id();
                let labels = body["Labels"].as_object().into_iter().flatten();
                let observed = Observed {
                    id: id.clone(),
                    name: request.name.to_owned(),
                    labels: labels
                        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
                        .collect(),
                    state: ContainerState::Created,
                    image,
                    image_id,
                    networks: BTreeMap::from([(network, NetworkEnd::default())]),
                    details: Some(Details {
                        restart_policy: "no".into(),
                        limits: translate::limits(request.spec),
                        ..Details::default()
                    }),
                };
                let ports = host_ports(&body);
                let own = observed.own().map(|own| own.instance);
                let twin = world
                    .containers
                    .values()
                    .filter(|one| !one.body.is_null())
                    .any(|one| own.is_some() && one.observed.own().map(|other| other.instance) == own);
                if let (true, Some(own), None) = (twin, own, &world.doubled) {
                    world.doubled = Some(own.to_string());
                }
                world
                    .containers
                    .insert(id.clone(), FakeContainer { observed, ports, body });
                id
            };
            self.tell(&id, Action::Created);
            let mut conditions = conditions;
            conditions.extend(self.world().conditions.iter().cloned());
            Ok(Created { id, conditions })
        }
        .boxed()
    }

    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let name = self
                .world()
                .containers
                .get(id)
                .map_or_else(|| id.to_owned(), |one| one.observed.name.clone());
            self.enter("start", &name, true).await?;
            let act = format!("start container `{name}`");
            let crashed = {
                let mut guard = self.world();
                let world = &mut *guard;
                let ports = world.get(&act, id)?.ports.clone();
                let mut held = world
                    .containers
                    .values()
                    .filter(|one| one.is_up() && one.observed.id != id)
                    .flat_map(|one| &one.ports)
                    .chain(&world.taken_ports);
                if let Some(port) = held.find(|port| ports.contains(port)).copied() {
                    return Err(EngineError::new(
                        ErrorKind::PortTaken { port: Some(port) },
                        &act,
                        "port is already allocated",
                    ));
                }
                world.starts += 1;
                let (starts, networks) = (world.starts, world.networks.clone());
                let crashing = world.crashing.get(&name).copied();
                let container = world.get(&act, id)?;
                match container.observed.state {
                    ContainerState::Running => return Ok(()),
                    ContainerState::Paused => {
                        return Err(EngineError::new(
                            ErrorKind::Conflict { holder: None },
                            &act,
                            "cannot start a paused container, try unpause instead",
                        ));
                    }
                    ContainerState::Dead | ContainerState::Removing => {
                        return Err(EngineError::new(
                            ErrorKind::Conflict { holder: None },
                            &act,
                            "it is marked for removal",
                        ));
                    }
                    ContainerState::Created | ContainerState::Restarting | ContainerState::Exited { .. } => {}
                }
                for (index, (network, end)) in container.observed.networks.iter_mut().enumerate() {
                    if network == "host" || network == "none" {
                        continue;
                    }
                    if !networks.contains_key(network) {
                        return Err(EngineError::new(
                            ErrorKind::NotFound,
                            &act,
                            &format!("network {network} not found"),
                        ));
                    }
                    let low = u8::try_from(starts % 250).unwrap_or(0) + 2;
                    end.addresses =
                        vec![std::net::Ipv4Addr::new(172, 18, u8::try_from(index).unwrap_or(0), low).into()];
                }
                container.observed.state = ContainerState::Running;
                container.details().started_at = Some(format!("start {starts}"));
                container.details().exit_code = None;
                crashing
            };
            self.tell(id, Action::Started);
            if let Some(code) = crashed {
                self.crash(&name, code);
            }
            Ok(())
        }
        .boxed()
    }

    fn stop<'a>(&'a self, id: &'a str, _grace: Duration) -> BoxFuture<'a, Result<()>> {
        self.end("stop", id, 143)
    }

    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        self.end("kill", id, 137)
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let name = self
                .world()
                .containers
                .get(id)
                .map_or_else(|| id.to_owned(), |one| one.observed.name.clone());
            self.enter("remove", &name, true).await?;
            {
                let mut world = self.world();
                match world.containers.get(id) {
                    None => return Ok(()),
                    Some(one) if one.is_up() => {
                        let said = "You cannot remove a running container";
                        return Err(EngineError::new(
                            ErrorKind::Conflict { holder: None },
                            format!("remove container `{name}`"),
                            said,
                        ));
                    }
                    Some(_) => world.containers.remove(id),
                };
            }
            self.tell(id, Action::Removed);
            Ok(())
        }
        .boxed()
    }

    fn unpause<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            self.enter("unpause", id, true).await?;
            {
                let mut world = self.world();
                let container = world.get("unpause", id)?;
                match container.observed.state {
                    ContainerState::Paused => container.observed.state = ContainerState::Running,
                    ContainerState::Running => return Ok(()),
                    ContainerState::Created
                    | ContainerState::Restarting
                    | ContainerState::Exited { .. }
                    | ContainerState::Dead
                    | ContainerState::Removing => {
                        return Err(EngineError::new(
                            ErrorKind::Conflict { holder: None },
                            "unpause",
                            "it is not running",
                        ));
                    }
                }
            }
            self.tell(id, Action::Unpaused);
            Ok(())
        }
        .boxed()
    }

    fn rename<'a>(&'a self, id: &'a str, name: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            self.enter("rename", name, true).await?;
            {
                let mut world = self.world();
                if let Some(holder) = world.by_name(name) {
                    let holder = Some(holder.observed.id.clone());
                    return Err(EngineError::new(
                        ErrorKind::Conflict { holder },
                        "rename",
                        "the name is already in use",
                    ));
                }
                world.get("rename", id)?.observed.name = name.to_owned();
            }
            self.tell(id, Action::Renamed);
            Ok(())
        }
        .boxed()
    }

    fn update_limits<'a>(
        &'a self,
        id: &'a str,
        spec: &'a ContainerSpec,
    ) -> BoxFuture<'a, Result<Vec<InstanceCondition>>> {
        async move {
            self.enter("update", id, true).await?;
            {
                let mut world = self.world();
                let details = world.get("update", id)?.details();
                details.limits = translate::limits(spec);
                details.restart_policy = "no".to_owned();
            }
            self.tell(id, Action::Updated);
            Ok(Vec::new())
        }
        .boxed()
    }

    fn ensure_network<'a>(&'a self, cluster: &'a str, namespace: &'a Namespace) -> BoxFuture<'a, Result<()>> {
        async move {
            self.enter("network", namespace.as_str(), false).await?;
            self.world()
                .networks
                .entry(translate::network_name(cluster, namespace))
                .or_insert_with(|| cluster.to_owned());
            Ok(())
        }
        .boxed()
    }

    fn ensure_ground<'a>(&'a self, ground: &'a Ground) -> BoxFuture<'a, Result<()>> {
        async move {
            self.enter("network", &ground.name(), false).await?;
            let cluster = ground.cluster.as_str().to_owned();
            self.world().networks.entry(ground.name()).or_insert(cluster);
            Ok(())
        }
        .boxed()
    }

    fn take_seat<'a>(&'a self, id: &'a str, seat: &'a Seat) -> BoxFuture<'a, Result<()>> {
        async move {
            self.enter("connect", id, true).await?;
            self.attach(id, &seat.ground.name(), Some(IpAddr::V4(seat.address)))
        }
        .boxed()
    }

    fn drop_networks<'a>(&'a self, cluster: &'a str, keep: &'a BTreeSet<Namespace>) -> BoxFuture<'a, Result<()>> {
        async move {
            self.enter("drop networks", cluster, false).await?;
            let mut world = self.world();
            let used: BTreeSet<String> = world
                .containers
                .values()
                .filter(|one| one.is_up())
                .flat_map(|one| one.observed.networks.keys().cloned())
                .collect();
            let kept: BTreeSet<String> = keep
                .iter()
                .map(|namespace| translate::network_name(cluster, namespace))
                .collect();
            world
                .networks
                .retain(|name, of| of != cluster || kept.contains(name) || used.contains(name));
            drop(world);
            self.changed.notify_waiters();
            Ok(())
        }
        .boxed()
    }

    fn connect<'a>(&'a self, cluster: &'a str, id: &'a str, instance: &'a InstanceName) -> BoxFuture<'a, Result<()>> {
        async move {
            self.enter("connect", id, true).await?;
            self.attach(id, &translate::network_name(cluster, &instance.namespace), None)
        }
        .boxed()
    }

    fn pull<'a>(
        &'a self,
        image: &'a ImageRef,
        login: Option<&'a Login>,
        progress: ProgressSink,
    ) -> BoxFuture<'a, Result<LocalImage>> {
        async move {
            self.world().pulled_as = login.map(|login| login.user.clone());
            self.enter("pull", image.as_str(), true).await?;
            let failure = self.world().pulls.get_mut(image.as_str()).and_then(VecDeque::pop_front);
            if let Some(kind) = failure {
                return Err(EngineError::new(
                    kind,
                    format!("pull image `{image}`"),
                    "as the test asked",
                ));
            }
            progress(PullProgress {
                done_bytes: 1,
                total_bytes: 2,
                percent: 50,
                attempt: 1,
            });
            let here = self.fetch(image);
            self.changed.notify_waiters();
            Ok(here)
        }
        .boxed()
    }

    fn image<'a>(&'a self, image: &'a ImageRef) -> BoxFuture<'a, Result<Option<LocalImage>>> {
        async move {
            self.world().look_ups += 1;
            self.enter("image", image.as_str(), false).await?;
            Ok(self.world().images.get(&translate::engine_reference(image)).cloned())
        }
        .boxed()
    }

    fn logs<'a>(&'a self, id: &'a str, lines: usize) -> BoxFuture<'a, Result<Vec<String>>> {
        async move {
            self.enter("logs", id, false).await?;
            let mut world = self.world();
            world.get("logs", id)?;
            Ok(world.logs[world.logs.len().saturating_sub(lines)..].to_vec())
        }
        .boxed()
    }

    fn exec<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> BoxFuture<'a, Result<ExecEnd>> {
        async move {
            let first = command.first().cloned().unwrap_or_default();
            let entered = tokio::time::timeout(timeout, self.enter("exec", &first, false)).await;
            entered.unwrap_or_else(|_| Err(EngineError::new(ErrorKind::Timeout, "exec", "no answer in time")))?;
            let mut world = self.world();
            if !world.get("exec", id)?.is_up() {
                return Err(EngineError::new(
                    ErrorKind::Conflict { holder: None },
                    "exec",
                    "the container is not running",
                ));
            }
            Ok(ExecEnd {
                code: world.exec.get(&first).copied().unwrap_or(0),
                output: String::new(),
            })
        }
        .boxed()
    }

    fn stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Stats>> {
        async move {
            self.enter("stats", id, false).await?;
            self.world().get("stats", id)?;
            Ok(Stats {
                cpu_seconds: 1.5,
                memory_bytes: 1 << 20,
                memory_limit_bytes: 1 << 30,
                receive_bytes: 10,
                transmit_bytes: 20,
                pids: 1,
            })
        }
        .boxed()
    }

    fn events(&self, _cluster: &str) -> BoxStream<'static, Event> {
        let receiver = self.events.subscribe();
        let first = stream::once(async { Event::Connected });
        let rest = stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                // Events were missed: as after a reconnect, all is to be looked at anew.
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Event::Connected, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        });
        first.chain(rest).boxed()
    }
}

impl FakeEngine {
    fn end<'a>(&'a self, verb: &'static str, id: &'a str, code: i64) -> BoxFuture<'a, Result<()>> {
        async move {
            let name = self
                .world()
                .containers
                .get(id)
                .map_or_else(|| id.to_owned(), |one| one.observed.name.clone());
            self.enter(verb, &name, true).await?;
            {
                let mut world = self.world();
                let Some(container) = world.containers.get_mut(id).filter(|one| one.is_up()) else {
                    return Ok(());
                };
                container.end(code);
            }
            self.tell(id, Action::Died { code: Some(code) });
            if verb == "stop" {
                self.tell(id, Action::Stopped);
            }
            Ok(())
        }
        .boxed()
    }
}
