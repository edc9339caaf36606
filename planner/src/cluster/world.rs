//! The nodes of a snapshot as dense arrays: who they are, what may be trusted of their records, how they look to
//! placement. Nodes with equal labels, roles and taints form a class, so that constraints are evaluated once per class.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::kinds::Kind;
use schemas::names::{NodeName, ResourceName};
use schemas::node::NodeSpec;
use schemas::placement::{Expression, Operator, Taint};
use schemas::records::{Assignment, CordonMode, NodeFacts, Order, Report, Verdict};
use schemas::units::Span;

use super::accept::{Body, Life, MAX_REPORTED, Standing};
use super::snapshot::{NodeEntry, Snapshot, Stored};
use super::verdicts::is_node;

/// No index.
pub(super) const NONE: u32 = u32::MAX;

/// The pseudo label whose value is the node's own name.
pub(super) const NODE_LABEL: &str = "reeve.node";

/// One node, and which of its records can be relied on.
pub(super) struct Node<'a> {
    pub name: &'a NodeName,
    pub entry: &'a NodeEntry,
    pub facts: Option<&'a NodeFacts>,
    pub assignment: Option<&'a Arc<Assignment>>,
    pub report: Option<&'a Arc<Report>>,
    pub verdict: Verdict,
    /// Of a lost node: for how long it has been away at least; None where none waits for it.
    pub away: Option<Span>,
    /// A person says that its host is off, and it is away; and for how long it has been away at least then.
    pub off: bool,
    pub silent: Option<Span>,
    /// It comes and goes.
    pub unsteady: bool,
    pub cordon: Option<(CordonMode, i64)>,
    /// Why nothing of this node may change now.
    pub held: Option<String>,
    /// Its assignment is missing or unreadable, and is written anew from its report in this pass.
    pub rewrite: bool,
    /// All its records are gone, though it had some: nobody knows what it runs.
    pub forgotten: bool,
    /// What people say of it; None when nothing is in force.
    pub spec: Option<&'a NodeSpec>,
    /// Whether its labels, roles and taints are all known: facts readable, Node resource not held.
    pub known: bool,
    pub class: u32,
    /// Its Node resource, among the lives.
    pub life: Option<usize>,
}

impl Node<'_> {
    /// Whether its agent is there, and its records are in order.
    pub(super) fn reachable(&self) -> bool {
        self.verdict == Verdict::Ready && self.held.is_none()
    }
    /// Whether something new may be placed here, as far as the node alone is concerned.
    pub(super) fn schedulable(&self) -> bool {
        self.reachable()
            && !self.unsteady
            && self.cordon.is_none()
            && self.known
            && self.facts.is_some()
            && !self.spec.is_some_and(|spec| spec.unschedulable)
    }
    pub(super) fn drained(&self) -> bool {
        matches!(self.cordon, Some((CordonMode::Drain, _)))
    }
    pub(super) fn retired(&self) -> bool {
        self.verdict == Verdict::Retired
    }
    /// Whether it is lost for what waits so long for a node.
    pub(super) fn lost_for(&self, wait: Option<Span>) -> bool {
        let passed = |away: Span| wait.is_some_and(|wait| wait <= away);
        self.verdict == Verdict::Lost && self.away.is_none_or(passed)
    }
    /// CPU in thousandths and memory in bytes for instances: capacity less what is reserved for the host.
    pub(super) fn allocatable(&self) -> (i64, i64) {
        let Some(facts) = self.facts else { return (0, 0) };
        let reserved = self.spec.map(|spec| {
            (
                spec.reserved.cpu.unwrap_or_default(),
                spec.reserved.memory.unwrap_or_default(),
            )
        });
        let (cpu, memory) = reserved.unwrap_or_default();
        let bytes = facts.capacity.memory.0.saturating_sub(memory.0);
        (
            i64::from(facts.capacity.cpu.millis.saturating_sub(cpu.millis)),
            i64::try_from(bytes).unwrap_or(i64::MAX),
        )
    }
}

/// The most roles of an agent's own telling that count, as of a Node resource.
const MAX_ROLES: usize = 64;

/// Equal nodes, as constraints see them.
pub(super) struct Class<'a> {
    pub labels: BTreeMap<&'a str, &'a str>,
    pub roles: &'a [ResourceName],
    pub taints: &'a [Taint],
}

pub(super) struct Nodes<'a> {
    /// In order of names.
    pub list: Vec<Node<'a>>,
    pub classes: Vec<Class<'a>>,
    /// The store has gone back, as several nodes show: nothing may change at all.
    pub hold_all: Option<String>,
    /// A live node nobody knows the instances of: creating others now could double them.
    pub gap: Option<u32>,
}

fn readable<T>(stored: Option<&Stored<T>>) -> Option<&T> {
    stored.and_then(|stored| stored.value.as_ref().ok())
}

/// The nodes of the snapshot, without what the Node resources say: see [`Nodes::describe`].
pub(super) fn nodes(snapshot: &Snapshot) -> Nodes<'_> {
    let ours = (snapshot.cluster.restore_epoch, snapshot.epoch);
    let mut list = Vec::with_capacity(snapshot.nodes.len());
    let (mut ahead, mut reporting, mut gap) = (0_usize, 0_usize, None);
    for (name, entry) in &snapshot.nodes {
        if !is_node(entry) {
            continue;
        }
        let cordon = entry.cordon.as_ref().map(|stored| {
            let mode = stored.value.as_ref().map_or(CordonMode::Cordon, |cordon| cordon.mode);
            (mode, stored.mod_revision)
        });
        let record = readable(entry.verdict.as_ref());
        let verdict = match (cordon, record.map(|record| record.verdict)) {
            (Some((CordonMode::Retire, _)), _) => Verdict::Retired,
            (_, Some(Verdict::Ready)) => Verdict::Ready,
            (_, Some(Verdict::Lost)) if entry.session.is_none() => Verdict::Lost,
            (_, Some(Verdict::Lost | Verdict::Unreachable | Verdict::Retired) | None) => Verdict::Unreachable,
        };
        let away = record.and_then(|record| record.away);
        let off = record.is_some_and(|record| record.off)
            && matches!(verdict, Verdict::Lost | Verdict::Retired)
            && entry.session.is_none();
        let silent = record.and_then(|record| record.silent);
        let unsteady = record.is_some_and(|record| record.unsteady);
        let facts =
            readable(entry.facts.as_ref()).filter(|facts| facts.node == *name && facts.cluster == snapshot.cluster.id);
        let assignment = readable(entry.assignment.as_ref())
            .filter(|assignment| assignment.node == *name && assignment.cluster == snapshot.cluster.id);
        let report = readable(entry.report.as_ref())
            .filter(|report| report.node == *name && report.cluster == snapshot.cluster.id);
        let watermark = readable(entry.session.as_ref())
            .filter(|session| session.node == *name && session.cluster == snapshot.cluster.id)
            .map_or(Order::default(), |session| session.watermark);
        let applied = report.map_or(watermark, |report| report.applied.max(watermark));
        // What was applied before a person accepted the store as it is need not be in it.
        let accepted = applied.restore_epoch < ours.0;
        let is_ahead = (applied.restore_epoch, applied.epoch) > ours
            || applied.generation > MAX_REPORTED
            || assignment.is_some_and(|assignment| applied > assignment.order && !accepted);
        reporting += usize::from(report.is_some());
        ahead += usize::from(is_ahead);
        // A store from before it, taken as it is: where things are, the node itself knows better.
        let overtaken = accepted && !is_ahead && assignment.is_some_and(|assignment| applied > assignment.order);
        let said_since = report.is_some_and(|report| report.applied >= applied);
        // The store was restored without what nodes say of themselves, and this one has not come yet.
        let then = |at: i64| snapshot.cluster.accepted_revision.is_some_and(|since| at <= since);
        let unheard = entry.report.is_none()
            && entry.session.is_none()
            && (entry
                .assignment
                .as_ref()
                .is_some_and(|stored| then(stored.mod_revision))
                || entry.facts.as_ref().is_some_and(|stored| then(stored.mod_revision)));
        let assignment = assignment.filter(|_| !overtaken);
        let mut node = Node {
            name,
            entry,
            facts,
            assignment,
            report,
            verdict,
            away,
            off,
            silent,
            unsteady,
            cordon,
            held: None,
            rewrite: false,
            forgotten: false,
            spec: None,
            known: facts.is_some(),
            class: 0,
            life: None,
        };
        if is_ahead {
            node.held = Some(format!(
                "StoreRegressed: its agent says it has applied assignment {} of epoch {}, which the store does not hold; if the store was restored, run `reeve admin accept-store`",
                applied.generation, applied.epoch
            ));
        } else if let Some(assignment) = assignment.filter(|a| (a.order.restore_epoch, a.order.epoch) > ours) {
            let order = assignment.order;
            node.held = Some(format!(
                "its assignment is of epoch {}, newer than this controller's",
                order.epoch
            ));
        } else if entry.report.is_some() && report.is_none() {
            node.held =
                Some("its report cannot be read, or is about another node or cluster; restart its agent".to_owned());
        } else if overtaken && said_since {
            node.rewrite = true;
            node.held = Some(
                "StoreRegressed: the store is from before its last assignment, which is being written anew from its report".to_owned(),
            );
        } else if overtaken {
            node.forgotten = true;
            node.held = Some(
                "StoreRegressed: the store is from before its last assignment, and its report of now has not come"
                    .to_owned(),
            );
            gap = gap.or(u32::try_from(list.len()).ok());
        } else if unheard && !matches!(verdict, Verdict::Lost | Verdict::Retired) {
            node.held = Some(
                "the store was restored, and its agent has not come back to it yet: until it does, or is lost, nothing is started in its place".to_owned(),
            );
            gap = gap.or(u32::try_from(list.len()).ok());
        } else if assignment.is_none() {
            let had = entry.assignment.is_some() || applied != Order::default();
            if report.is_some() && had {
                node.rewrite = true;
                node.held = Some(
                    "its assignment was missing or unreadable, and is being written anew from its report".to_owned(),
                );
            } else if had {
                node.forgotten = true;
                node.held = Some(
                    "its assignment and its report are missing or unreadable; restart its agent so that it reports"
                        .to_owned(),
                );
                if verdict == Verdict::Ready {
                    gap = gap.or(u32::try_from(list.len()).ok());
                }
            }
        }
        list.push(node);
    }
    let hold_all = (ahead >= 3 || (ahead > 0 && ahead * 2 > reporting.max(list.len()))).then(|| {
        format!("StoreRegressed: {ahead} nodes have applied assignments that the store does not hold: it has gone back. What runs is kept; restore the newest backup, or run `reeve admin accept-store` to go on from it")
    });
    if let Some(why) = &hold_all {
        for node in &mut list {
            node.rewrite = false;
            node.held = node.held.take().or_else(|| Some(why.clone()));
        }
    }
    Nodes {
        list,
        classes: Vec::new(),
        hold_all,
        gap,
    }
}

impl<'a> Nodes<'a> {
    /// Lays what people say of nodes over what agents say, and sorts nodes into classes.
    pub(super) fn describe(&mut self, lives: &[Life<'a>]) {
        let mut said = lives
            .iter()
            .enumerate()
            .filter(|(_, life)| life.key.kind == Kind::Node)
            .peekable();
        type Look<'a> = (
            Option<(&'a BTreeMap<String, String>, &'a [ResourceName])>,
            Option<(&'a BTreeMap<String, String>, &'a [ResourceName], &'a [Taint])>,
        );
        let mut known: BTreeMap<Look<'a>, u32> = BTreeMap::new();
        for node in &mut self.list {
            while said
                .next_if(|(_, life)| life.key.name.as_str() < node.name.as_str())
                .is_some()
            {}
            if let Some((index, life)) = said.next_if(|(_, life)| life.key.name.as_str() == node.name.as_str()) {
                node.life = Some(index);
                match &life.standing {
                    Standing::Live(live) => {
                        node.spec = match live.body {
                            Body::Node(spec) => Some(spec),
                            Body::Service(_) | Body::ConfigFile(_) => None,
                        }
                    }
                    Standing::Held { .. } => node.known = false,
                    Standing::Never | Standing::Deleted => {}
                }
            }
            let facts = node
                .facts
                .map(|facts| (&facts.labels, &facts.roles[..facts.roles.len().min(MAX_ROLES)]));
            let spec = node
                .spec
                .filter(|spec| !spec.labels.is_empty() || !spec.roles.is_empty() || !spec.taints.is_empty());
            let look: Look<'a> = (
                facts,
                spec.map(|spec| (&spec.labels, &spec.roles[..], &spec.taints[..])),
            );
            node.class = *known.entry(look).or_insert_with(|| {
                let mut labels: BTreeMap<&str, &str> = BTreeMap::new();
                for (key, value) in facts
                    .into_iter()
                    .flat_map(|(labels, _)| labels)
                    .chain(spec.into_iter().flat_map(|spec| &spec.labels))
                {
                    labels.insert(key, value);
                }
                let (said, taints): (&[ResourceName], &[Taint]) =
                    spec.map_or((&[], &[]), |spec| (&spec.roles, &spec.taints));
                // What a person says of it goes before what its agent was given.
                let roles = if said.is_empty() {
                    facts.map_or(said, |(_, roles)| roles)
                } else {
                    said
                };
                self.classes.push(Class { labels, roles, taints });
                u32::try_from(self.classes.len() - 1).unwrap_or(NONE)
            });
        }
    }

    /// The dense index of a node's name.
    pub(super) fn find(&self, name: &NodeName) -> Option<u32> {
        self.list
            .binary_search_by(|node| node.name.cmp(name))
            .ok()
            .and_then(|index| u32::try_from(index).ok())
    }

    /// The value of a label on a node, with the pseudo label.
    pub(super) fn label(&self, node: u32, key: &str) -> Option<&'a str> {
        let node = &self.list[node as usize];
        if key == NODE_LABEL {
            Some(node.name.as_str())
        } else {
            self.classes[node.class as usize].labels.get(key).copied()
        }
    }

    /// For every node, the number of its value of this label; [`NONE`] where it has none; and how many values there are.
    pub(super) fn domains(&self, key: &str) -> (Vec<u32>, u32) {
        if key == NODE_LABEL {
            let count = u32::try_from(self.list.len()).unwrap_or(NONE);
            return ((0..count).collect(), count);
        }
        let mut values: BTreeMap<&str, u32> = BTreeMap::new();
        let by_class: Vec<u32> = self
            .classes
            .iter()
            .map(|class| match class.labels.get(key) {
                Some(value) => {
                    let next = u32::try_from(values.len()).unwrap_or(NONE);
                    *values.entry(value).or_insert(next)
                }
                None => NONE,
            })
            .collect();
        let count = u32::try_from(values.len()).unwrap_or(NONE);
        (
            self.list.iter().map(|node| by_class[node.class as usize]).collect(),
            count,
        )
    }
}

/// Whether an expression holds for a label's value.
pub(super) fn holds(expression: &Expression, value: Option<&str>) -> bool {
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |test: fn(i64, i64) -> bool| {
        let bound = expression.values.first().and_then(|bound| number(bound));
        value
            .and_then(number)
            .zip(bound)
            .is_some_and(|(value, bound)| test(value, bound))
    };
    match expression.operator {
        Operator::In => value.is_some_and(|value| expression.values.iter().any(|one| one == value)),
        Operator::NotIn => value.is_none_or(|value| expression.values.iter().all(|one| one != value)),
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
        Operator::Gt => compare(|value, bound| value > bound),
        Operator::Lt => compare(|value, bound| value < bound),
    }
}
