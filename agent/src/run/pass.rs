//! One pass: ask the planner, write down what must be, begin what is to be done, report.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use planner::network::relay::{Place, Reaching};
use planner::node::{Failure, InstanceKey, LedgerEntry, NodePlan, Op, Pull, SpecState, Step, plan};
use runtime::chain;
use schemas::image::{ImagePin, ImageRef};
use schemas::records::network::address6;
use schemas::records::{AssignedImage, AssignedState, FailingReason, NodeCondition, Phase, Report, ReportedInstance};

use super::now_ms;
use super::state::{Agent, End, Note};
use super::turn::under;
use crate::api::Directory;
use crate::engine::{EngineError, ErrorKind, LocalImage};
use crate::events_out;
use crate::execute::{Ran, execute, pull_reason};
use crate::ground::Local;
use crate::metrics::InstanceSample;
use crate::register::REGRESSED;
use crate::relays::Reach;
use crate::walls::filter::{Process, Running};

/// Inspections that only look for drift wait for creates under way, as long as those get on.
const CREATES_FIRST_MS: u64 = 2_000;
/// A pull that is silent for so long gives its turn to another, and goes on.
const SILENT_PULL_MS: u64 = 30_000;
/// Where other nodes have the image they are asked when the registry has not said a first word of it for so long.
const FIRST_WORD_MS: u64 = 10_000;
/// How often that is looked at.
const PULL_LOOK: Duration = Duration::from_secs(5);
/// The last lines of a failing instance that are reported.
const LOG_LINES: usize = 10;

impl Agent {
    /// Plans, writes down what must be, and begins what is to be done.
    pub(super) fn pass(&mut self) {
        if !self.seen {
            return;
        }
        let began = Instant::now();
        self.keep_contact();
        self.input.conditions = self.conditions();
        self.input.disk_full = self.is_full();
        self.input.busy.clone_from(&self.busy);
        self.input.busy.extend(self.sight.stale().cloned());
        self.input.stopped_by_person.clone_from(&self.sight.stopped_by_person);
        self.input.observed = match &self.engine_down {
            Some(why) => Err(why.clone()),
            None => Ok(std::mem::take(&mut self.sight.containers)),
        };
        let mut plan = plan(&self.input);
        if self.ask_policy(std::mem::take(&mut plan.wanted_permits)) {
            plan = planner::node::plan(&self.input);
        }
        if !self.write_down(&plan) {
            // Nothing is persisted, nothing is started: the same pass again, knowing that.
            self.input.disk_full = true;
            plan = planner::node::plan(&self.input);
            for (key, entry) in std::mem::take(&mut plan.ledger) {
                self.enter(key, entry);
            }
            plan.steps.retain(|step| !matches!(step.op, Op::Create { .. }));
        }
        if let Ok(containers) = std::mem::replace(&mut self.input.observed, Ok(Vec::new())) {
            self.sight.containers = containers;
        }
        let NodePlan {
            ledger: _,
            steps,
            pulls,
            inspect,
            look_alikes,
            look_up,
            // Asked above.
            wanted_permits: _,
            wanted_specs,
            wanted_files,
            used_specs,
            probes,
            look_again_ms,
            lingering,
            mut report,
        } = plan;
        report.virtual_ips.clone_from(&self.virtual_ips);
        self.input.lingering = lingering;
        self.tell_ground();
        self.tell_granted();
        for step in steps {
            self.start_step(step);
        }
        for (reference, pull) in pulls {
            self.start_pull(reference, pull);
        }
        for id in inspect {
            if !self.may_wait(&id) {
                self.inspect(&id);
            }
        }
        for image in look_up {
            self.look_up(image);
        }
        let mut wants = wanted_specs;
        wants.extend(self.missed_specs.iter().cloned());
        self.ends.specs.send_if_modified(|wanted| {
            let more = !wants.is_subset(wanted);
            *wanted = wants;
            more
        });
        let mut wants = wanted_files;
        wants.extend(self.missed_files.iter().cloned());
        self.ends.files.send_if_modified(|wanted| {
            let more = !wants.is_subset(wanted);
            *wanted = wants;
            more
        });
        if look_alikes != self.look_alikes && !look_alikes.is_empty() {
            let short: Vec<&str> = look_alikes.iter().map(|id| id.get(..12).unwrap_or(id)).collect();
            tracing::warn!(
                containers = short.join(","),
                "containers bear this cluster's labels and are not of this agent: left alone; remove them if nobody needs them"
            );
        }
        self.look_alikes = look_alikes;
        self.used_specs = used_specs;
        self.prober.keep(&probes);
        self.look_again_ms = look_again_ms;
        self.show(&report, began.elapsed());
        self.publish(report);
    }

    /// Shows the pass to whoever scrapes.
    fn show(&self, report: &Report, took: Duration) {
        self.metrics.reconciled(took);
        let offered = self.offered.as_ref().map_or(report.applied, |offered| offered.order);
        self.metrics.assignment(offered.generation, report.applied.generation);
        let sample = |line: &ReportedInstance| InstanceSample {
            name: line.name(),
            running: line.container.clone().filter(|_| line.phase == Phase::Running),
            ready: line.ready,
            restarts: line.restarts,
        };
        self.metrics
            .set_instances(report.instances.iter().map(sample).collect());
        let ready = match (&self.engine_down, &self.input.assignment) {
            (Some(why), _) => Err(why.clone()),
            (None, None) => Err("no assignment is known yet".to_owned()),
            (None, Some(_)) => Ok(()),
        };
        self.health.turned(ready);
    }

    /// What of the cluster's network this node was assigned, for who keeps its end of it.
    fn tell_ground(&self) {
        let assignment = self.input.assignment.as_ref();
        let network = assignment.and_then(|assignment| assignment.network.as_ref());
        self.ends.local.send_if_modified(|local| {
            let instances = assignment.map_or(&[][..], |assignment| &assignment.instances);
            let mut own = BTreeMap::new();
            for one in instances {
                if let (Some(network), Some(address)) = (network, one.address) {
                    own.insert(IpAddr::V4(address), one.namespace.clone());
                    let sixth = network
                        .subnet6
                        .map(|subnet6| address6(address, &network.subnet, &subnet6));
                    own.extend(sixth.map(|sixth| (IpAddr::V6(sixth), one.namespace.clone())));
                }
            }
            let container = |key: &InstanceKey| {
                let entry = self.input.ledger.entries.get(key)?;
                Some(Process::Container(entry.container_id()?.to_owned()))
            };
            let running = instances.iter().filter_map(|one| {
                let address = network.and(one.address)?;
                Some(Running {
                    address,
                    namespace: one.namespace.clone(),
                    service: one.workload.clone(),
                    published: one.ports.iter().map(|port| (port.host_port, port.protocol)).collect(),
                    process: container(&InstanceKey::from(one)),
                })
            });
            let reaching = instances.iter().filter_map(|one| {
                let spec = match self.input.specs.get(&InstanceKey::from(one).spec(one.n, &one.digest))? {
                    SpecState::Here(spec) => spec,
                    SpecState::Damaged(_) => return None,
                };
                let wanted = one.state == AssignedState::Present && one.address.is_some();
                let connect = &spec.container.connect;
                let entry = self.input.ledger.entries.get(&InstanceKey::from(one))?;
                (wanted && !connect.is_empty()).then_some(Reaching {
                    place: Place::Container(entry.container_id()?.to_owned()),
                    namespace: one.namespace.clone(),
                    connect: connect.clone(),
                })
            });
            // While the policy cannot be read, what it said last counts.
            let ports = self.gate.ports();
            let (lowest_port, host_ips) =
                ports.unwrap_or_else(|| (local.reach.lowest_port.max(1), local.reach.host_ips.clone()));
            let now = Local {
                network: network.cloned(),
                own,
                running: running.collect(),
                reach: Reach {
                    reaching: reaching.collect(),
                    lowest_port,
                    host_ips,
                },
            };
            let news = *local != now;
            *local = now;
            news
        });
    }

    /// What virtual addresses this node was granted, for who keeps them.
    fn tell_granted(&self) {
        let Some(assignment) = &self.input.assignment else {
            return;
        };
        self.ends.granted.send_if_modified(|granted| {
            let news = granted.order != assignment.order;
            if news {
                granted.order = assignment.order;
                granted.list.clone_from(&assignment.virtual_ips);
            }
            news
        });
    }

    fn conditions(&self) -> Vec<NodeCondition> {
        let mut conditions = self.damaged.clone();
        let told = [
            ("WrongCluster", &self.foreign),
            (REGRESSED, &self.hold),
            ("AssignmentUnreadable", &self.unreadable),
            ("AssignmentDoubted", &self.doubted),
            ("DiskUnwritable", &self.unwritable),
        ];
        let told = told
            .into_iter()
            .filter_map(|(reason, message)| Some((reason, message.as_ref()?)));
        let policy = self.gate.unreadable().map(|why| NodeCondition {
            reason: "PolicyUnreadable".to_owned(),
            message: format!("{why}; what runs is kept, no new container is made until it is right"),
        });
        conditions.extend(policy);
        conditions.extend(self.walls.trouble().map(|message| NodeCondition {
            reason: "WallsDown".to_owned(),
            message,
        }));
        conditions.extend(self.ground.conditions.iter().cloned());
        let refused = self.virtual_ips.iter().flat_map(|told| &told.refused);
        conditions.extend(refused.map(|one| NodeCondition {
            reason: "VirtualIpDown".to_owned(),
            message: format!(
                "the virtual address {} of namespace {}: {}",
                one.name, one.namespace, one.message
            ),
        }));
        let trouble = self.trouble.as_ref().map(|(reason, message)| (*reason, message));
        conditions.extend(told.chain(trouble).map(|(reason, message)| NodeCondition {
            reason: reason.to_owned(),
            message: message.clone(),
        }));
        conditions
    }

    fn enter(&mut self, key: InstanceKey, entry: Option<LedgerEntry>) {
        match entry {
            Some(entry) => self.input.ledger.entries.insert(key, entry),
            None => {
                self.networks = None;
                self.input.ledger.entries.remove(&key)
            }
        };
    }

    /// Enters the plan's changes into the ledger; what is proof is on disk on return. False: it could not be written,
    /// and the ledger is as before.
    fn write_down(&mut self, plan: &NodePlan) -> bool {
        if plan.ledger.is_empty() {
            return true;
        }
        let entries = &self.input.ledger.entries;
        let proof = plan.ledger.iter().any(|(key, entry)| match (entries.get(key), entry) {
            (Some(old), Some(new)) => old.proof_differs(new),
            (None, Some(_)) | (Some(_), None) => true,
            (None, None) => false,
        });
        let before = proof.then(|| self.input.ledger.clone());
        for (key, entry) in &plan.ledger {
            self.enter(key.clone(), entry.clone());
        }
        let Some(before) = before else {
            self.save_soon();
            return true;
        };
        let saved = self.save();
        if !saved {
            self.input.ledger = before;
        }
        saved
    }

    fn start_step(&mut self, step: Step) {
        tracing::debug!(instance = %step.instance, why = %step.reason, "{} begins", step.op.verb());
        self.busy.insert(step.instance.clone());
        let permits = match &step.op {
            Op::Start { .. } => &self.restarts,
            Op::Stop { id, grace: _ } | Op::Kill { id } => {
                self.sight.we_stop(id);
                &self.stops
            }
            Op::Create { .. } => {
                self.creating += 1;
                self.create_ms = self.input.now_ms;
                &self.steps
            }
            Op::Remove { .. }
            | Op::Unpause { .. }
            | Op::Rename { .. }
            | Op::UpdateLimits { .. }
            | Op::Connect { .. } => &self.steps,
        };
        let permits = permits.clone();
        let needs = self.needs(&step);
        let (engine, cluster, notes) = (self.engine.clone(), self.input.cluster.clone(), self.notes.clone());
        let gate = self.gate.clone();
        self.begin(async move {
            let created = {
                let step = Box::new(step.clone());
                move |outcome| {
                    let _ = notes.send(Note::Created { step, outcome });
                }
            };
            let until_ms = step.until_ms;
            let run = async {
                // It may have waited for its turn, or this process have stood still.
                if until_ms.is_some_and(|until| now_ms() >= until) {
                    return Ran::unlaid(Failure {
                        reason: FailingReason::Isolated,
                        message: "this node had no word of the store for too long when it was about to start"
                            .to_owned(),
                    });
                }
                match needs {
                    Ok(needs) => execute(engine.as_ref(), &cluster, &gate, &step, needs, created).await,
                    Err(failed) => Ran::unlaid(failed),
                }
            };
            let (ran, took) = under(permits, run).await;
            End::Step { step, ran, took }
        });
    }

    fn start_pull(&mut self, reference: String, pull: Pull) {
        let Pull {
            image,
            others,
            instance,
            reason: _,
        } = pull;
        let known = self.input.images.entry(reference.clone()).or_default();
        if known.pulling.is_some() {
            return;
        }
        known.pulling = Some(0);
        // Then those are asked first that may have it: the registry is asked again after them.
        let failed_before = known
            .failed
            .as_ref()
            .is_some_and(|failed| failed.reason == FailingReason::ImagePullFailed);
        tracing::debug!(%instance, image = reference, "pull begins");
        let began_ms = self.input.now_ms;
        let (engine, permits, notes) = (self.engine.clone(), self.pulls.clone(), self.notes.clone());
        let (logins, namespace) = (self.logins.clone(), instance.namespace.clone());
        let peers = self.peers.clone();
        self.begin(async move {
            let mut permit = permits.acquire_owned().await.ok();
            let asked_ms = now_ms();
            let heard_ms = Arc::new(AtomicU64::new(asked_ms));
            let (name, heard) = (reference.clone(), heard_ms.clone());
            let progress = Arc::new(move |progress: crate::engine::PullProgress| {
                heard.store(now_ms(), Ordering::Relaxed);
                let _ = notes.send(Note::PullProgress {
                    image: name.clone(),
                    percent: progress.percent,
                });
            });
            let began = Instant::now();
            let mut refused = None;
            if let (Some((pin, sources)), true) = (&others, failed_before) {
                match peers.fetch(&image, *pin, sources).await {
                    Err(why) => refused = Some(why),
                    Ok(found) => {
                        return End::Pulled {
                            image: reference,
                            began_ms,
                            took: began.elapsed(),
                            others_asked: true,
                            result: Ok(found),
                        };
                    }
                }
            }
            // Opened for this pull alone, and as late as can be.
            let login = logins.of(&namespace, &image).and_then(|login| {
                let failed = |error| tracing::warn!(image = image.as_str(), "{}", chain(&error));
                login.map_err(failed).ok()
            });
            let hurried = others.is_some() && refused.is_none() && peers.can_ask();
            let mut result = {
                let mut pull = std::pin::pin!(engine.pull(&image, login.as_ref(), progress));
                let mut looks = tokio::time::interval(PULL_LOOK);
                loop {
                    tokio::select! {
                        result = &mut pull => break result,
                        _ = looks.tick() => {
                            let heard_ms = heard_ms.load(Ordering::Relaxed);
                            let silent_ms = now_ms().saturating_sub(heard_ms);
                            if silent_ms >= SILENT_PULL_MS {
                                permit = None;
                            }
                            if hurried && heard_ms == asked_ms && silent_ms >= FIRST_WORD_MS {
                                break Err(EngineError::new(
                                    ErrorKind::Registry,
                                    format!("pull image `{image}`"),
                                    "its registry has not answered yet",
                                ));
                            }
                        }
                    }
                }
            };
            // Whoever waits for the same registry need not wait for other nodes.
            drop(permit);
            if let (Err(error), Some((pin, sources)), None) = (&result, &others, &refused)
                && pull_reason(&error.kind) == FailingReason::ImagePullFailed
            {
                match peers.fetch(&image, *pin, sources).await {
                    Ok(found) => result = Ok(found),
                    Err(why) => refused = Some(why),
                }
            }
            let told = |error: EngineError| match &refused {
                Some(why) => EngineError::new(error.kind, error.act, &format!("{}; {why}", error.said)),
                None => error,
            };
            End::Pulled {
                image: reference,
                began_ms,
                took: began.elapsed(),
                others_asked: refused.is_some(),
                result: result.map_err(told),
            }
        });
    }

    /// Whether an inspection may wait: it is of a container of ours, and containers are being created meanwhile.
    fn may_wait(&self, id: &str) -> bool {
        let creates = self.creating > 0 && self.input.now_ms.saturating_sub(self.create_ms) < CREATES_FIRST_MS;
        let entries = &self.input.ledger.entries;
        creates && entries.values().any(|entry| entry.container_id() == Some(id))
    }

    pub(super) fn inspect(&mut self, id: &str) {
        if !self.inspections.begin(id, self.input.now_ms) {
            return;
        }
        let (engine, id, permits) = (self.engine.clone(), id.to_owned(), self.reads.clone());
        self.begin(async move {
            let (result, _) = under(permits, engine.inspect(&id)).await;
            End::Inspected { id, result }
        });
    }

    pub(super) fn look_up(&mut self, image: String) {
        let Ok(reference) = image.parse::<ImageRef>() else {
            return;
        };
        if !self.look_ups.begin(&image, self.input.now_ms) {
            return;
        }
        let (engine, permits) = (self.engine.clone(), self.reads.clone());
        self.begin(async move {
            let find = async {
                match (engine.image(&reference).await?, reference.pinned()) {
                    // Perhaps it came from another node.
                    (None, Some(digest)) if reference.digest().is_some() => {
                        let found = engine.image(&reference.loaded_as(digest)).await?;
                        Ok(found.map(|found| LocalImage {
                            pin: found.id.0.parse().ok().map(|id| ImagePin { digest, id }),
                            loaded: true,
                            ..found
                        }))
                    }
                    (found, _) => Ok(found),
                }
            };
            let (result, _) = under(permits, find).await;
            End::LookedUp { image, result }
        });
    }

    /// The images that specs of this node name, and what their tags were settled to be.
    fn wanted_images(&self) -> Vec<ImageRef> {
        let mut wanted = Vec::new();
        for (id, spec) in &self.input.specs {
            let SpecState::Here(spec) = spec else { continue };
            let image = &spec.container.image;
            wanted.push(image.clone());
            if image.digest().is_some() {
                continue;
            }
            let assigned = self
                .input
                .assignment
                .iter()
                .flat_map(|assignment| &assignment.instances);
            let assigned = assigned.filter(|one| one.n == id.n).filter_map(|one| {
                let of = (&one.namespace, &one.workload) == (id.resource.namespace.as_ref()?, &id.resource.name);
                one.image.filter(|_| of)
            });
            let kept = self.input.ledger.entries.iter().filter_map(|(key, entry)| {
                let of = key.resource() == id.resource && entry.in_force.as_ref()?.n == id.n;
                entry.image.filter(|_| of)
            });
            let mut digests: Vec<_> = assigned
                .chain(kept)
                .filter_map(|image| match image {
                    AssignedImage::Settled(pin) => Some(pin.digest),
                    AssignedImage::Settling => None,
                })
                .collect();
            digests.sort_unstable();
            digests.dedup();
            wanted.extend(
                digests
                    .into_iter()
                    .flat_map(|digest| [image.at(digest), image.loaded_as(digest)]),
            );
        }
        wanted
    }

    /// Hands the report over, tells of what changed, and fetches the last lines of what fails.
    fn publish(&mut self, report: Report) {
        let mut failing = BTreeSet::new();
        for line in &report.instances {
            let logged = line.failing.as_ref().is_some_and(|failing| {
                matches!(
                    failing.reason,
                    FailingReason::CrashLoop
                        | FailingReason::Unhealthy
                        | FailingReason::ProgressDeadlineExceeded
                        | FailingReason::StartFailed
                )
            });
            let key = InstanceKey::reported(line);
            let entry = self.input.ledger.entries.get(&key);
            let id = entry.and_then(|entry| entry.container_id().map(str::to_owned));
            let (true, Some(id)) = (logged, id) else { continue };
            failing.insert(key.clone());
            let asked = (id.clone(), line.restarts);
            if self.logs_asked.get(&key) != Some(&asked) {
                self.logs_asked.insert(key.clone(), asked);
                let engine = self.engine.clone();
                self.begin(async move {
                    End::Logs {
                        instance: key,
                        lines: engine.logs(&id, LOG_LINES).await.unwrap_or_default(),
                    }
                });
            }
        }
        self.logs_asked.retain(|key, _| failing.contains(key));
        self.input.logs.retain(|key, _| failing.contains(key));
        if self.last_report.as_deref() == Some(&report) {
            return;
        }
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        for told in events_out::between(self.last_report.as_deref(), &report, &time) {
            // A full queue drops events: they are for people, and the loop never waits.
            let _ = self.ends.events.try_send(told);
        }
        let directory = Directory::of(&report, &self.input.ledger, self.wanted_images());
        self.ends.directory.send_replace(Some(Arc::new(directory)));
        let report = Arc::new(report);
        self.last_report = Some(report.clone());
        self.ends.report.send_replace(Some(report));
    }
}
