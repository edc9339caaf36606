//! What Prometheus sees of a controller: its own passes and writes, counted as they happen, and the state of services and
//! nodes, taken at each scrape from the leader's last pass. A standby shows its own part only, so that no sum over
//! controllers counts a service twice.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use planner::cluster::{Snapshot, Status};
use prometheus::core::Collector;
use prometheus::{Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use runtime::boottime::Instant;
use schemas::keys::ResourceKey;
use schemas::names::NodeName;
use schemas::records::network::usable;
use schemas::records::{Assignment, Breaker, Condition, ConditionStatus, ConditionType, Order, Report, Verdict};

use crate::execute::{Class, Committed};

/// The leader's last pass, as far as metrics are made from it.
#[derive(Debug)]
pub struct View {
    /// The status every resource has.
    pub statuses: BTreeMap<ResourceKey, Status>,
    /// Every node.
    pub nodes: Vec<NodeView>,
    /// The removal budget.
    pub breaker: Breaker,
    /// So many nodes are away at once that none is called lost.
    pub mass_loss: bool,
    /// Foreign keys under the root.
    pub foreign: usize,
    /// Records of ours that cannot be read.
    pub unreadable: usize,
}

/// One node in a [`View`].
#[derive(Debug)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// What is assigned; none when there is nothing, or nothing that can be read.
    pub assignment: Option<Arc<Assignment>>,
    /// What it reports.
    pub report: Option<Arc<Report>>,
    /// Since when the report has been behind the assignment, on this process's clock.
    pub behind_since: Option<Instant>,
}

impl NodeView {
    fn applied(&self) -> Order {
        self.report.as_ref().map(|report| report.applied).unwrap_or_default()
    }
}

/// Of what a node was assigned of the network: what no instance has, and no one that has just gone.
fn addresses_left(node: &NodeView) -> Option<u64> {
    let assignment = node.assignment.as_ref()?;
    let all = usable(&assignment.network.as_ref()?.subnet);
    let used = assignment.instances.iter().filter(|one| one.address.is_some()).count();
    let reported = node.report.as_ref().and_then(|report| report.network.as_ref());
    let kept = reported.map_or(0, |network| network.lingering.len());
    let all = u64::from((all.end() + 1).saturating_sub(*all.start()));
    Some(all.saturating_sub((used + kept) as u64))
}

/// The nodes of a snapshot; `behind` is kept from pass to pass.
pub fn node_views(snapshot: &Snapshot, behind: &mut BTreeMap<NodeName, (Order, Instant)>) -> Vec<NodeView> {
    let now = Instant::now();
    behind.retain(|name, _| snapshot.nodes.contains_key(name));
    let view = |(name, entry): (&NodeName, &planner::cluster::NodeEntry)| {
        let assignment = entry
            .assignment
            .as_ref()
            .and_then(|stored| stored.value.as_ref().ok())
            .cloned();
        let report = entry
            .report
            .as_ref()
            .and_then(|stored| stored.value.as_ref().ok())
            .cloned();
        let mut view = NodeView {
            name: name.clone(),
            assignment,
            report,
            behind_since: None,
        };
        let assigned = view.assignment.as_ref().map(|assignment| assignment.order);
        match assigned.filter(|order| *order > view.applied()) {
            Some(order) => view.behind_since = Some(behind.entry(name.clone()).or_insert((order, now)).1),
            None => {
                behind.remove(name);
            }
        }
        view
    };
    snapshot.nodes.iter().map(view).collect()
}

/// The counters and gauges of one controller.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    leader: IntGauge,
    epoch: IntGauge,
    held: IntGauge,
    /// Why the store may not be acted on.
    why_held: Mutex<Option<String>>,
    /// Since when a pass has been computing.
    thinking: Mutex<Option<Instant>>,
    settled: IntGauge,
    passes: IntCounterVec,
    observe: Histogram,
    plan: Histogram,
    reconcile: Histogram,
    writes: IntCounterVec,
    events: IntCounter,
    events_dropped: IntCounter,
    store_up: IntGauge,
    store_silent: prometheus::Gauge,
    store_revision: IntGauge,
    lists: IntGauge,
    view: Mutex<Option<Arc<View>>>,
}

/// Seconds: from a quiet pass of a small cluster to a cold one of the largest.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// The outcomes of a pass.
pub const OUTCOMES: [&str; 6] = ["quiet", "written", "held", "conflict", "failed", "panicked"];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let metrics = Self {
            leader: gauge("reeve_controller_leader", "1 while this controller leads, else 0."),
            epoch: gauge(
                "reeve_controller_epoch",
                "The epoch this controller writes under; 0 on a standby.",
            ),
            held: gauge(
                "reeve_controller_held",
                "1 while the store may not be acted on (marker missing, gone back), else 0.",
            ),
            settled: gauge(
                "reeve_controller_settled_revision",
                "The store's revision at which a pass last found nothing to write.",
            ),
            passes: counters(
                "reeve_controller_passes_total",
                "Passes of the control loop, by outcome.",
                &["outcome"],
            ),
            observe: histogram("reeve_controller_observe_seconds", "From the cache to the snapshot."),
            plan: histogram("reeve_controller_plan_seconds", "From the snapshot to the plan."),
            reconcile: histogram("reeve_controller_pass_seconds", "A whole pass, writes included."),
            writes: counters(
                "reeve_controller_writes_total",
                "Writes to the store, by class and outcome.",
                &["class", "outcome"],
            ),
            events: counter("reeve_controller_events_total", "Events told."),
            events_dropped: counter(
                "reeve_controller_events_dropped_total",
                "Events dropped because there were too many.",
            ),
            store_up: gauge("reeve_store_up", "1 while the store answers, else 0."),
            store_silent: float(
                "reeve_store_silent_seconds",
                "Since the store last answered this process.",
            ),
            store_revision: gauge(
                "reeve_store_revision",
                "The store's revision that the cache has reached.",
            ),
            lists: gauge(
                "reeve_watch_lists",
                "How often everything was listed: 1 at the start, more after lost watches.",
            ),
            why_held: Mutex::new(None),
            thinking: Mutex::new(None),
            view: Mutex::new(None),
            registry,
        };
        for outcome in OUTCOMES {
            metrics.passes.with_label_values(&[outcome]);
        }
        for class in Class::ALL {
            metrics.writes.with_label_values(&[class.name(), "committed"]);
        }
        let collectors: [Box<dyn Collector>; 15] = [
            Box::new(metrics.leader.clone()),
            Box::new(metrics.epoch.clone()),
            Box::new(metrics.held.clone()),
            Box::new(metrics.settled.clone()),
            Box::new(metrics.passes.clone()),
            Box::new(metrics.observe.clone()),
            Box::new(metrics.plan.clone()),
            Box::new(metrics.reconcile.clone()),
            Box::new(metrics.writes.clone()),
            Box::new(metrics.events.clone()),
            Box::new(metrics.events_dropped.clone()),
            Box::new(metrics.store_up.clone()),
            Box::new(metrics.store_silent.clone()),
            Box::new(metrics.store_revision.clone()),
            Box::new(metrics.lists.clone()),
        ];
        for collector in collectors {
            register(&metrics.registry, collector);
        }
        metrics
    }

    /// This controller leads under an epoch, or stands by.
    pub fn leads(&self, epoch: Option<i64>) {
        self.leader.set(i64::from(epoch.is_some()));
        self.epoch.set(epoch.unwrap_or(0));
        if epoch.is_none() {
            self.show(None);
        }
    }

    /// Whether it leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader.get() == 1
    }

    /// Why the store may not be acted on; none when it may.
    pub fn holds(&self, why: Option<String>) {
        self.held.set(i64::from(why.is_some()));
        *self.why_held.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why the store may not be acted on, as last told.
    #[must_use]
    pub fn held(&self) -> Option<String> {
        self.why_held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A pass begins to compute, or has ended.
    pub fn thinks(&self, begins: bool) {
        *self.thinking.lock().unwrap_or_else(PoisonError::into_inner) = begins.then(Instant::now);
    }

    /// For how long a pass has been computing; none between two.
    #[must_use]
    pub fn thinking_for(&self) -> Option<Duration> {
        let since = *self.thinking.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(Instant::elapsed)
    }

    /// One pass has ended.
    pub fn passed(&self, outcome: &'static str, took: Duration) {
        self.passes.with_label_values(&[outcome]).inc();
        self.reconcile.observe(took.as_secs_f64());
    }

    /// A pass over the store at this revision found nothing to write.
    pub fn settled(&self, revision: i64) {
        self.settled.set(revision);
    }

    /// How many passes have ended so.
    #[must_use]
    pub fn passes(&self, outcome: &'static str) -> u64 {
        self.passes.with_label_values(&[outcome]).get()
    }

    /// How long observing and planning took.
    pub fn thought(&self, observe: Duration, plan: Duration) {
        self.observe.observe(observe.as_secs_f64());
        self.plan.observe(plan.as_secs_f64());
    }

    /// What was written.
    pub fn wrote(&self, committed: &Committed) {
        for ((class, outcome), count) in &committed.counts {
            self.writes.with_label_values(&[class.name(), outcome]).inc_by(*count);
        }
    }

    /// What was told.
    pub fn told(&self, told: crate::events::Told) {
        self.events.inc_by(told.sent);
        self.events_dropped.inc_by(told.dropped);
    }

    /// The leader's last pass; none on a standby.
    pub fn show(&self, view: Option<Arc<View>>) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }

    /// Everything, as Prometheus reads it.
    pub fn text(&self, store: &runtime::Health, cache: Option<&runtime::Cache>) -> String {
        let silent = store.last_answer().map(Instant::elapsed);
        self.store_up.set(i64::from(
            silent.is_some_and(|silent| silent < crate::http::STORE_SILENCE),
        ));
        self.store_silent
            .set(silent.map_or(f64::INFINITY, |silent| silent.as_secs_f64()));
        if let Some(cache) = cache {
            self.store_revision.set(cache.revision);
            self.lists.set(i64::try_from(cache.lists).unwrap_or(i64::MAX));
        }
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "the metrics could not be written out");
        }
        let mut text = String::from_utf8(text).unwrap_or_default();
        if let Some(view) = view {
            text.push_str(&of_view(&view));
        }
        text
    }
}

/// The state of services and nodes: made anew at each scrape, so that what is gone leaves no series behind.
fn of_view(view: &View) -> String {
    let family = Family::new;
    let of_service = |name, help| family(name, help, &["namespace", "service"]);
    let mut desired = of_service("reeve_service_desired", "Instances asked for by the accepted spec.");
    let mut assigned = of_service("reeve_service_assigned", "Instances that have a node.");
    let mut running = of_service("reeve_service_running", "Instances reported as running.");
    let mut ready = of_service(
        "reeve_service_ready",
        "Instances reported as ready, on a node that is ready.",
    );
    let mut updated = of_service("reeve_service_updated", "Instances that run the newest accepted spec.");
    let mut invalid = of_service(
        "reeve_service_invalid",
        "1 while the desired value is not accepted, else 0.",
    );
    let mut stopped = of_service(
        "reeve_service_change_stopped",
        "1 while a change has stopped on a failure, else 0.",
    );
    let mut restarts = of_service(
        "reeve_service_restarts",
        "Restarts of the containers that run now, each since it was created.",
    );

    let of_node = |name, help| family(name, help, &["node"]);
    let mut allocatable_cpu = of_node("reeve_node_allocatable_cpu_cores", "CPU cores for instances.");
    let mut allocatable_memory = of_node("reeve_node_allocatable_memory_bytes", "Memory for instances.");
    let mut reserved_cpu = of_node("reeve_node_reserved_cpu_cores", "CPU cores reserved by instances.");
    let mut reserved_memory = of_node("reeve_node_reserved_memory_bytes", "Memory reserved by instances.");
    let mut node_instances = of_node("reeve_node_instances", "Instances assigned.");
    let mut node_ready = of_node("reeve_node_ready_instances", "Instances reported as ready.");
    let mut up = of_node(
        "reeve_node_ready",
        "1 while the node is held to be ready, else 0; a retired node has none.",
    );
    let mut verdict = family(
        "reeve_node_verdict",
        "1 for what the node is held to be; no series for what it is not.",
        &["node", "verdict"],
    );
    let mut assigned_generation = of_node(
        "reeve_node_assigned_generation",
        "The generation of the stored assignment.",
    );
    let mut applied_generation = of_node(
        "reeve_node_applied_generation",
        "The generation that the node reports as applied.",
    );
    let mut addresses = of_node(
        "reeve_node_addresses_left",
        "Addresses of the node's part of the network that nobody has; none where it has no part.",
    );
    let mut behind = of_node(
        "reeve_node_assignment_lag_seconds",
        "Since when the node's report is behind its assignment; 0 when it is not.",
    );

    let mut virtual_ips = family(
        "reeve_virtual_ip_ready",
        "1 while a node that was granted the virtual address says that it holds it, else 0.",
        &["namespace", "name"],
    );

    for (key, status) in &view.statuses {
        match status {
            Status::Service(status) => {
                let namespace = key.namespace.as_ref().map_or("_", |namespace| namespace.as_str());
                let labels = [namespace, key.name.as_str()];
                let counts = status.counts;
                desired.set(&labels, f64::from(counts.desired));
                assigned.set(&labels, f64::from(counts.assigned));
                running.set(&labels, f64::from(counts.running));
                ready.set(&labels, f64::from(counts.ready));
                updated.set(&labels, f64::from(counts.updated));
                let is_false = |kind| {
                    let found = status.conditions.iter().find(|condition| condition.kind == kind);
                    found.filter(|condition| condition.status == ConditionStatus::False)
                };
                invalid.set(&labels, flag(is_false(ConditionType::Accepted).is_some()));
                let stuck =
                    is_false(ConditionType::Progressing).is_some_and(|condition| condition.reason != "Complete");
                stopped.set(&labels, flag(stuck));
            }
            Status::Node(status) => {
                let node = [key.name.as_str()];
                allocatable_cpu.set(&node, f64::from(status.allocatable_cpu.millis) / 1000.0);
                allocatable_memory.set(&node, bytes(status.allocatable_memory.0));
                reserved_cpu.set(&node, f64::from(status.reserved_cpu.millis) / 1000.0);
                reserved_memory.set(&node, bytes(status.reserved_memory.0));
                node_instances.set(&node, f64::from(status.instances));
                node_ready.set(&node, f64::from(status.ready));
                if status.verdict != Verdict::Retired {
                    up.set(&node, flag(status.verdict == Verdict::Ready));
                }
                let name = match status.verdict {
                    Verdict::Ready => "ready",
                    Verdict::Unreachable => "unreachable",
                    Verdict::Lost => "lost",
                    Verdict::Retired => "retired",
                };
                verdict.set(&[key.name.as_str(), name], 1.0);
            }
            Status::ConfigFile(_) => {}
            Status::VirtualIp(status) => {
                let namespace = key.namespace.as_ref().map_or("_", |namespace| namespace.as_str());
                let ready = |one: &&Condition| one.kind == ConditionType::Ready && one.status == ConditionStatus::True;
                let held = status.conditions.iter().find(ready).is_some();
                virtual_ips.set(&[namespace, key.name.as_str()], flag(held));
            }
        }
    }
    let mut restarted: BTreeMap<ResourceKey, u64> = BTreeMap::new();
    for node in &view.nodes {
        let label = [node.name.as_str()];
        let generation = node
            .assignment
            .as_ref()
            .map_or(0, |assignment| assignment.order.generation);
        assigned_generation.set(&label, bytes(generation));
        if let Some(left) = addresses_left(node) {
            addresses.set(&label, bytes(left));
        }
        applied_generation.set(&label, bytes(node.applied().generation));
        behind.set(
            &label,
            node.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64()),
        );
        // A node may report what it likes: only services that there are get a series.
        for instance in node
            .report
            .iter()
            .flat_map(|report| &report.instances)
            .filter(|instance| instance.restarts > 0)
        {
            let key = ResourceKey {
                namespace: Some(instance.namespace.clone()),
                kind: instance.kind,
                name: instance.workload.clone(),
            };
            if matches!(view.statuses.get(&key), Some(Status::Service(_))) {
                *restarted.entry(key).or_default() += u64::from(instance.restarts);
            }
        }
    }
    for (key, status) in &view.statuses {
        if let Status::Service(_) = status {
            let namespace = key.namespace.as_ref().map_or("_", |namespace| namespace.as_str());
            let total = restarted.get(key).copied().unwrap_or(0);
            restarts.set(&[namespace, key.name.as_str()], bytes(total));
        }
    }
    let mut text = String::new();
    let families = [
        desired,
        assigned,
        running,
        ready,
        updated,
        invalid,
        stopped,
        restarts,
        allocatable_cpu,
        allocatable_memory,
        reserved_cpu,
        reserved_memory,
        node_instances,
        node_ready,
        up,
        verdict,
        assigned_generation,
        applied_generation,
        addresses,
        behind,
        virtual_ips,
    ];
    for family in &families {
        family.write(&mut text);
    }
    let mut single = |name, help, value: f64| {
        let mut family = Family::new(name, help, &[]);
        family.set(&[], value);
        family.write(&mut text);
    };
    single(
        "reeve_breaker_held",
        "Removals that wait for a person.",
        f64::from(view.breaker.held.as_ref().map_or(0, |h| h.count)),
    );
    single(
        "reeve_mass_loss",
        "1 while more than half of the nodes are away at once, and none is called lost.",
        flag(view.mass_loss),
    );
    single(
        "reeve_breaker_spent",
        "Removals of the last ten minutes that nobody acknowledged.",
        f64::from(view.breaker.spent),
    );
    single(
        "reeve_foreign_keys",
        "Keys under the prefix that are nothing of Reeve's.",
        count(view.foreign),
    );
    single(
        "reeve_unreadable_keys",
        "Records in the store that cannot be read.",
        count(view.unreadable),
    );
    text
}

/// One gauge with all its series, written as Prometheus reads it. Its own registry would take seconds for the series of
/// 5,000 nodes; these labels are names, in which nothing needs escaping.
struct Family {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    lines: String,
}

impl Family {
    const fn new(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self {
            name,
            help,
            labels,
            lines: String::new(),
        }
    }

    fn set(&mut self, values: &[&str], value: f64) {
        self.lines.push_str(self.name);
        for (n, (label, of)) in self.labels.iter().zip(values).enumerate() {
            let before = if n == 0 { '{' } else { ',' };
            // A string takes all that is written.
            let _ = write!(self.lines, "{before}{label}=\"{of}\"");
        }
        let end = if self.labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.lines, "{end} {value}");
    }

    fn write(&self, text: &mut String) {
        if !self.lines.is_empty() {
            let Self {
                name,
                help,
                labels: _,
                lines,
            } = self;
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{lines}");
        }
    }
}

fn flag(on: bool) -> f64 {
    if on { 1.0 } else { 0.0 }
}

/// Exact up to 2^53; the nearest number beyond.
#[expect(clippy::cast_precision_loss, reason = "metrics are floating-point numbers")]
fn bytes(value: u64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    bytes(u64::try_from(value).unwrap_or(u64::MAX))
}

fn register(registry: &Registry, collector: Box<dyn Collector>) {
    registry
        .register(collector)
        .expect("each name of ours is registered once");
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("names of ours are valid")
}

fn float(name: &str, help: &str) -> prometheus::Gauge {
    prometheus::Gauge::new(name, help).expect("names of ours are valid")
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("names of ours are valid")
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect("names of ours are valid")
}

fn histogram(name: &str, help: &str) -> Histogram {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec())).expect("names of ours are valid")
}
