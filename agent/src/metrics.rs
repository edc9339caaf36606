//! The agent's metrics for Prometheus. The loop tells [`Metrics`] what it did; a scrape adds what each container uses,
//! asked of the engine then and kept for five seconds, so that nothing is gathered while nobody looks.
//! Names begin with `reeve_agent_` (the agent) or `reeve_instance_` (one instance).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use prometheus::{
    CounterVec, Encoder as _, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use schemas::names::{InstanceName, NodeName};

use crate::engine::{ContainerRuntime, ErrorKind, Stats};
use crate::seen::Seen;

mod network;

/// How long samples are kept.
const KEEP: Duration = Duration::from_secs(5);
/// Time for all samples of a scrape; what is not there by then is left out.
const DEADLINE: Duration = Duration::from_secs(4);
/// Samples asked for at once.
const AT_ONCE: usize = 8;

/// An instance of this node, as its metrics tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceSample {
    pub name: InstanceName,
    /// The id of its container while it runs.
    pub running: Option<String>,
    pub ready: bool,
    /// Restarts since the container was created.
    pub restarts: u32,
}

/// Instances, each with what its container uses where the engine said.
type Samples = Arc<Vec<(InstanceSample, Option<Stats>)>>;

/// Where the agent's numbers are kept.
pub struct Metrics {
    registry: Registry,
    reconcile: Histogram,
    operations: IntCounterVec,
    operation_seconds: CounterVec,
    engine_errors: IntCounterVec,
    generation: IntGaugeVec,
    lag: IntGauge,
    store_writes: IntCounter,
    store_trouble: IntGaugeVec,
    denials: IntCounterVec,
    virtual_ips: IntGaugeVec,
    virtual_ips_taken: IntCounterVec,
    doubts: IntCounterVec,
    instances: Mutex<Vec<InstanceSample>>,
    /// Where this node's relay is asked for its numbers; empty where there is none.
    relay: Mutex<PathBuf>,
    /// The last samples and when they were begun; held while gathering, so that two scrapes gather once.
    samples: tokio::sync::Mutex<Option<(Instant, Samples)>>,
    /// The node's end of the network, once there is one to look at.
    seen: std::sync::OnceLock<Arc<Seen>>,
}

impl Metrics {
    /// The error is a name that is no metric's or is there twice, which a test excludes.
    pub fn new(node: &NodeName) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let info = IntGaugeVec::new(
            Opts::new("reeve_agent_info", "The agent: 1, with its node and version."),
            &["node", "version"],
        )?;
        info.with_label_values(&[node.as_str(), env!("CARGO_PKG_VERSION")])
            .set(1);
        let buckets = vec![0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];
        let metrics = Self {
            reconcile: Histogram::with_opts(
                HistogramOpts::new(
                    "reeve_agent_reconcile_duration_seconds",
                    "Time to observe, plan and hand out the steps of one pass.",
                )
                .buckets(buckets),
            )?,
            operations: IntCounterVec::new(
                Opts::new(
                    "reeve_agent_operations_total",
                    "Operations on the engine, by what they were and how they ended.",
                ),
                &["operation", "outcome"],
            )?,
            operation_seconds: CounterVec::new(
                Opts::new(
                    "reeve_agent_operation_seconds_total",
                    "Time spent in operations on the engine.",
                ),
                &["operation"],
            )?,
            engine_errors: IntCounterVec::new(
                Opts::new(
                    "reeve_agent_engine_errors_total",
                    "Calls to the engine that failed, by kind.",
                ),
                &["kind"],
            )?,
            generation: IntGaugeVec::new(
                Opts::new(
                    "reeve_agent_assignment_generation",
                    "The generation of the assignment that was read, and of the one that is in force.",
                ),
                &["state"],
            )?,
            lag: IntGauge::new(
                "reeve_agent_assignment_lag",
                "Generations between the assignment that was read and the one in force.",
            )?,
            store_writes: IntCounter::new(
                "reeve_agent_store_writes_total",
                "Writes to the store, lease renewals not counted.",
            )?,
            store_trouble: IntGaugeVec::new(
                Opts::new(
                    "reeve_agent_store_trouble",
                    "1 while the agent keeps to what it has because of the store: it has gone back, was wiped or is another \
                     cluster's (StoreRegressed), or cannot be used (StoreUnavailable); else 0.",
                ),
                &["reason"],
            )?,
            denials: IntCounterVec::new(
                Opts::new(
                    "reeve_agent_policy_denials_total",
                    "What the node's policy denied, by its rule: once for each spec and policy, not for each look.",
                ),
                &["rule"],
            )?,
            doubts: IntCounterVec::new(
                Opts::new(
                    "reeve_agent_assignment_doubts_total",
                    "Assignments found in the store that no controller's signature vouches for, by what was wrong with it.",
                ),
                &["why"],
            )?,
            virtual_ips: IntGaugeVec::new(
                Opts::new(
                    "reeve_virtual_ip_held",
                    "1 of each virtual address that this node holds; no series of others.",
                ),
                &["namespace", "name"],
            )?,
            virtual_ips_taken: IntCounterVec::new(
                Opts::new(
                    "reeve_virtual_ip_taken_total",
                    "How often this node has taken the virtual address: that it moved here, or was put back.",
                ),
                &["namespace", "name"],
            )?,
            registry,
            instances: Mutex::default(),
            relay: Mutex::default(),
            samples: tokio::sync::Mutex::default(),
            seen: std::sync::OnceLock::new(),
        };
        let registry = &metrics.registry;
        registry.register(Box::new(info))?;
        registry.register(Box::new(metrics.reconcile.clone()))?;
        registry.register(Box::new(metrics.operations.clone()))?;
        registry.register(Box::new(metrics.operation_seconds.clone()))?;
        registry.register(Box::new(metrics.engine_errors.clone()))?;
        registry.register(Box::new(metrics.generation.clone()))?;
        registry.register(Box::new(metrics.lag.clone()))?;
        registry.register(Box::new(metrics.store_writes.clone()))?;
        registry.register(Box::new(metrics.store_trouble.clone()))?;
        registry.register(Box::new(metrics.denials.clone()))?;
        metrics.store_regressed(false);
        metrics.store_unavailable(false);
        registry.register(Box::new(metrics.doubts.clone()))?;
        registry.register(Box::new(metrics.virtual_ips.clone()))?;
        registry.register(Box::new(metrics.virtual_ips_taken.clone()))?;
        Ok(metrics)
    }

    /// Whether the store is from before what this agent has seen, empty, or another cluster's.
    pub fn store_regressed(&self, so: bool) {
        self.store_trouble
            .with_label_values(&["StoreRegressed"])
            .set(i64::from(so));
    }

    /// Whether the store cannot be reached, read or written.
    pub fn store_unavailable(&self, so: bool) {
        self.store_trouble
            .with_label_values(&["StoreUnavailable"])
            .set(i64::from(so));
    }

    /// One pass of the loop took so long.
    pub fn reconciled(&self, took: Duration) {
        self.reconcile.observe(took.as_secs_f64());
    }

    /// One operation (`create`, `pull`, ...) ended.
    pub fn operated(&self, operation: &str, took: Duration, failed: Option<&ErrorKind>) {
        let outcome = if failed.is_some() { "failed" } else { "done" };
        self.operations.with_label_values(&[operation, outcome]).inc();
        self.operation_seconds
            .with_label_values(&[operation])
            .inc_by(took.as_secs_f64());
        if let Some(kind) = failed {
            self.engine_failed(kind);
        }
    }

    /// A call to the engine that is no operation failed: a list, an inspection.
    pub fn engine_failed(&self, kind: &ErrorKind) {
        let word = match kind {
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Timeout => "timeout",
            ErrorKind::NotFound => "not_found",
            ErrorKind::Conflict { .. } => "conflict",
            ErrorKind::PortTaken { .. } => "port_taken",
            ErrorKind::NoSpace => "no_space",
            ErrorKind::Denied => "denied",
            ErrorKind::ImageNotFound => "image_not_found",
            ErrorKind::Registry => "registry",
            ErrorKind::Refused => "refused",
            ErrorKind::Policy => "policy",
            ErrorKind::TooOld => "too_old",
            ErrorKind::Other => "other",
        };
        self.engine_errors.with_label_values(&[word]).inc();
    }

    /// The generation that was read, and the one in force.
    pub fn assignment(&self, assigned: u64, applied: u64) {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.generation.with_label_values(&["assigned"]).set(signed(assigned));
        self.generation.with_label_values(&["applied"]).set(signed(applied));
        self.lag.set(signed(assigned.saturating_sub(applied)));
    }

    /// The agent wrote to the store.
    pub fn store_written(&self) {
        self.store_writes.inc();
    }

    /// The node's policy denied something.
    pub fn denied(&self, rule: &str) {
        self.denials.with_label_values(&[rule]).inc();
    }

    /// Assignments are held against signatures: from now on there are numbers of it, so that the first doubt is a rise.
    pub fn doubts(&self, words: &[&str]) {
        for why in words {
            let _ = self.doubts.with_label_values(&[why]);
        }
    }

    /// What stands in the store as this node's assignment is no controller's word.
    pub fn doubted(&self, why: &str) {
        self.doubts.with_label_values(&[why]).inc();
    }

    /// The virtual addresses that the node holds, by namespace and name.
    pub fn virtual_ips_held(&self, names: Vec<(String, String)>) {
        self.virtual_ips.reset();
        for (namespace, name) in names {
            self.virtual_ips
                .with_label_values(&[namespace.as_str(), name.as_str()])
                .set(1);
        }
    }

    /// The node has taken a virtual address.
    pub fn virtual_ip_taken(&self, namespace: &str, name: &str) {
        self.virtual_ips_taken.with_label_values(&[namespace, name]).inc();
    }

    /// Where this node's relay is.
    pub fn relay_in(&self, dir: PathBuf) {
        *lock(&self.relay) = dir;
    }

    /// Of which network to tell.
    pub(crate) fn sees(&self, seen: Arc<Seen>) {
        let _ = self.seen.set(seen);
    }

    /// What the node runs now.
    pub fn set_instances(&self, instances: Vec<InstanceSample>) {
        *lock(&self.instances) = instances;
    }

    /// Everything, in Prometheus' text format. Never fails for an engine that does not answer: then only the use is missing.
    pub async fn scrape(&self, engine: &dyn ContainerRuntime) -> Result<Vec<u8>, prometheus::Error> {
        let samples = self.samples(engine).await;
        let mut families = self.registry.gather();
        let relay = lock(&self.relay).clone();
        families.extend(crate::relays::registry(&relay).await?.gather());
        families.extend(instance_registry(&samples)?.gather());
        if let Some(seen) = self.seen.get()
            && let Ok(here) = tokio::time::timeout(DEADLINE, seen.here()).await
        {
            families.extend(network::families(&here)?);
        }
        let mut out = Vec::new();
        TextEncoder::new().encode(&families, &mut out)?;
        Ok(out)
    }

    async fn samples(&self, engine: &dyn ContainerRuntime) -> Samples {
        let mut kept = self.samples.lock().await;
        if let Some((at, samples)) = kept.as_ref()
            && at.elapsed() < KEEP
        {
            return Arc::clone(samples);
        }
        let begun = Instant::now();
        let instances = lock(&self.instances).clone();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let gathered = futures::stream::iter(instances)
            .map(|instance| async move {
                let stats = match &instance.running {
                    Some(id) => tokio::time::timeout_at(deadline, engine.stats(id))
                        .await
                        .ok()
                        .and_then(Result::ok),
                    None => None,
                };
                (instance, stats)
            })
            .buffered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let samples = Arc::new(gathered);
        *kept = Some((begun, Arc::clone(&samples)));
        samples
    }
}

/// A registry made for one scrape, so that an instance that is gone leaves no series behind.
fn instance_registry(samples: &[(InstanceSample, Option<Stats>)]) -> Result<Registry, prometheus::Error> {
    const LABELS: &[&str] = &["namespace", "workload", "slot"];
    let registry = Registry::new();
    let gauge = |name: &str, help: &str| -> Result<GaugeVec, prometheus::Error> {
        let family = GaugeVec::new(Opts::new(name, help), LABELS)?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    };
    let counter = |name: &str, help: &str| -> Result<CounterVec, prometheus::Error> {
        let family = CounterVec::new(Opts::new(name, help), LABELS)?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    };
    let running = gauge("reeve_instance_running", "Whether the instance's container runs.")?;
    let ready = gauge("reeve_instance_ready", "Whether the instance serves.")?;
    let restarts = counter(
        "reeve_instance_restarts_total",
        "Restarts since the instance's container was created.",
    )?;
    let cpu = counter(
        "reeve_instance_cpu_seconds_total",
        "CPU time the instance's container has used.",
    )?;
    let memory = gauge(
        "reeve_instance_memory_bytes",
        "Memory the instance's container uses, without page cache that can be given back.",
    )?;
    let limit = gauge(
        "reeve_instance_memory_limit_bytes",
        "The most memory the instance's container may use.",
    )?;
    let received = counter(
        "reeve_instance_network_receive_bytes_total",
        "Bytes the instance's container has received.",
    )?;
    let sent = counter(
        "reeve_instance_network_transmit_bytes_total",
        "Bytes the instance's container has sent.",
    )?;
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has only floating-point numbers")]
    let float = |value: u64| value as f64;
    for (instance, stats) in samples {
        let InstanceSample {
            name,
            running: container,
            ready: serves,
            restarts: count,
        } = instance;
        let slot = name.slot.to_string();
        let labels = [name.namespace.as_str(), name.workload.as_str(), slot.as_str()];
        running
            .with_label_values(&labels)
            .set(f64::from(u8::from(container.is_some())));
        ready.with_label_values(&labels).set(f64::from(u8::from(*serves)));
        restarts.with_label_values(&labels).inc_by(f64::from(*count));
        if let Some(Stats {
            cpu_seconds,
            memory_bytes,
            memory_limit_bytes,
            receive_bytes,
            transmit_bytes,
            pids: _,
        }) = stats
        {
            cpu.with_label_values(&labels).inc_by(cpu_seconds.max(0.0));
            memory.with_label_values(&labels).set(float(*memory_bytes));
            limit.with_label_values(&labels).set(float(*memory_limit_bytes));
            received.with_label_values(&labels).inc_by(float(*receive_bytes));
            sent.with_label_values(&labels).inc_by(float(*transmit_bytes));
        }
    }
    Ok(registry)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one; if it did, the value would still be whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::FakeEngine;
    use std::collections::BTreeMap;

    fn metrics() -> Metrics {
        Metrics::new(&"n1".parse().expect("a node")).expect("metrics")
    }

    fn sample(slot: &str, running: Option<String>) -> InstanceSample {
        let name = InstanceName {
            namespace: "default".parse().expect("a namespace"),
            workload: "web".parse().expect("a name"),
            slot: slot.parse().expect("a slot"),
        };
        InstanceSample {
            name,
            ready: running.is_some(),
            running,
            restarts: 2,
        }
    }

    async fn text(metrics: &Metrics, engine: &FakeEngine) -> String {
        String::from_utf8(metrics.scrape(engine).await.expect("a scrape")).expect("text")
    }

    #[tokio::test]
    async fn a_scrape_tells_every_instance_and_what_the_loop_did() {
        let (metrics, engine) = (metrics(), FakeEngine::new());
        let id = engine.add_foreign("x", &BTreeMap::new());
        metrics.set_instances(vec![sample("1", Some(id)), sample("2", None)]);
        metrics.reconciled(Duration::from_millis(2));
        metrics.operated("create", Duration::from_millis(5), None);
        metrics.operated(
            "start",
            Duration::from_millis(5),
            Some(&ErrorKind::PortTaken { port: None }),
        );
        metrics.assignment(7, 5);
        metrics.store_written();
        let text = text(&metrics, &engine).await;
        for line in [
            "reeve_agent_info{node=\"n1\",version=\"0.1.0\"} 1",
            "reeve_agent_assignment_lag 2",
            "reeve_agent_operations_total{operation=\"create\",outcome=\"done\"} 1",
            "reeve_agent_operations_total{operation=\"start\",outcome=\"failed\"} 1",
            "reeve_agent_engine_errors_total{kind=\"port_taken\"} 1",
            "reeve_agent_store_writes_total 1",
            "reeve_agent_reconcile_duration_seconds_count 1",
            "reeve_instance_ready{namespace=\"default\",slot=\"1\",workload=\"web\"} 1",
            "reeve_instance_ready{namespace=\"default\",slot=\"2\",workload=\"web\"} 0",
            "reeve_instance_restarts_total{namespace=\"default\",slot=\"1\",workload=\"web\"} 2",
            "reeve_instance_cpu_seconds_total{namespace=\"default\",slot=\"1\",workload=\"web\"} 1.5",
            "reeve_instance_memory_bytes{namespace=\"default\",slot=\"1\",workload=\"web\"} 1048576",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("reeve_instance_cpu_seconds_total{namespace=\"default\",slot=\"2\""));
    }

    #[tokio::test]
    async fn an_engine_that_is_down_takes_away_the_use_and_nothing_else() {
        let (metrics, engine) = (metrics(), FakeEngine::new());
        let id = engine.add_foreign("x", &BTreeMap::new());
        metrics.set_instances(vec![sample("1", Some(id))]);
        engine.go_down();
        let text = text(&metrics, &engine).await;
        assert!(
            text.contains("reeve_instance_ready{") && !text.contains("reeve_instance_cpu_seconds_total{"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn samples_are_kept_for_a_while_and_an_instance_that_is_gone_is_not_told_for_ever() {
        let (metrics, engine) = (metrics(), FakeEngine::new());
        metrics.set_instances(vec![sample("1", None)]);
        assert!(text(&metrics, &engine).await.contains("slot=\"1\""));
        metrics.set_instances(Vec::new());
        assert!(
            text(&metrics, &engine).await.contains("slot=\"1\""),
            "within five seconds the samples are the same"
        );
        *metrics.samples.lock().await = None;
        assert!(!text(&metrics, &engine).await.contains("slot=\"1\""));
    }
}
