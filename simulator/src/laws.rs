//! What must hold whatever happens, checked after every tick of a world, and what must be so when all is well again.

use std::collections::{BTreeMap, BTreeSet};

use planner::node::ContainerState;
use schemas::keys::{Key, Root};
use schemas::names::NodeName;
use schemas::records::{Assigned, AssignedState, Assignment, Order, Record};

use crate::line::Commit;
use crate::machine::Machine;
use crate::world::{exclusive, stops_by_itself};

/// What the laws remember of a world.
#[derive(Default)]
pub struct Laws {
    /// Every assignment that a controller ever wrote, by node and order.
    assigned: BTreeMap<NodeName, BTreeMap<Order, Assignment>>,
    /// Each machine as it was when it was last looked at.
    seen: BTreeMap<String, Seen>,
    /// The broken ones, in words.
    pub broken: Vec<String>,
}

#[derive(Default)]
struct Seen {
    calls: usize,
    /// The engine's count of changes, and the process's count of effects.
    stirred: (u64, i64, u32),
    /// What ran, by name.
    running: BTreeSet<String>,
    /// What a person laid hands on.
    touched: BTreeSet<String>,
    /// The order on disk.
    order: Option<Order>,
}

impl Laws {
    /// A person laid hands on a container: what the agent does to it from now on is repair.
    pub fn touch(&mut self, machine: &str, container: &str) {
        let seen = self.seen.entry(machine.to_owned()).or_default();
        seen.touched.insert(container.to_owned());
    }

    /// A machine went off, and all that ran on it.
    pub fn off(&mut self, machine: &str) {
        self.seen.entry(machine.to_owned()).or_default().running.clear();
    }

    fn broke(&mut self, law: &str, what: String) {
        let said = format!("law {law}: {what}");
        if !self.broken.contains(&said) {
            self.broken.push(said);
        }
    }

    /// Writes that came into force: each by who may, and fenced.
    pub fn wrote(&mut self, commits: &[Commit]) {
        let root = Root::default();
        for commit in commits {
            let fenced = commit.fence.as_deref() == Some(root.key(&Key::Election).as_str());
            for (text, value) in &commit.keys {
                let by = &commit.by;
                let Some(key) = root.parse(text.as_bytes()) else {
                    self.broke("4", format!("{by} wrote the unknown key {text}"));
                    continue;
                };
                let own = |node: &NodeName| node.as_str() == by;
                let controller = by.starts_with("controller");
                let may = match &key {
                    Key::Node(node) | Key::Report(node) | Key::Session(node) => own(node),
                    Key::Event(_) => true,
                    Key::Election | Key::Controller(_) => controller,
                    // Spent.
                    Key::Ack(_) if value.is_none() => controller,
                    Key::Status(_)
                    | Key::Accepted(..)
                    | Key::Assignment(_)
                    | Key::Verdict(_)
                    | Key::Breaker
                    | Key::Handed(_)
                    | Key::Peer(_)
                    | Key::Endpoints(_)
                    | Key::Policies(_) => controller,
                    Key::Cluster
                    | Key::Desired(_)
                    | Key::Cordon(_)
                    | Key::Ack(_)
                    | Key::Join(_)
                    | Key::Trust(_)
                    | Key::Issued(..)
                    | Key::Blob(..)
                    | Key::Sealed(_)
                    | Key::Audit(..)
                    | Key::Own(..) => false,
                };
                if !may {
                    self.broke("4", format!("{by} wrote {text}"));
                }
                let must = controller && !matches!(key, Key::Election | Key::Controller(_) | Key::Event(_));
                if must && !fenced {
                    self.broke("2", format!("{by} wrote {text} behind the fence {:?}", commit.fence));
                }
                if !controller && commit.fence.is_none() && !matches!(key, Key::Session(_) | Key::Event(_)) {
                    self.broke("2", format!("{by} wrote {text} without its session"));
                }
                if let (Key::Assignment(node), Some(value)) = (&key, value) {
                    self.assignment(node, value);
                }
            }
        }
    }

    fn assignment(&mut self, node: &NodeName, value: &[u8]) {
        let Ok(assignment) = Assignment::decode(value) else {
            self.broke("5", format!("the assignment of {node} that was written cannot be read"));
            return;
        };
        let order = assignment.order;
        let known = self.assigned.entry(node.clone()).or_default();
        let before = known.insert(order, assignment.clone());
        if before.is_some_and(|before| before != assignment) {
            self.broke("3", format!("two assignments of {node} have the order {order:?}"));
        }
    }

    /// One machine, after a tick.
    pub fn look(&mut self, machine: &Machine) {
        let name = machine.name.clone();
        let stirred = (machine.engine.stirred(), machine.cut.effects(), machine.starts);
        if self.seen.get(&name).is_some_and(|seen| seen.stirred == stirred) {
            return;
        }
        if let Some(doubled) = machine.engine.doubled() {
            self.broke("8", format!("{doubled} had two containers at once on {name}"));
        }
        let calls = machine.engine.calls();
        let mut seen = self.seen.remove(&name).unwrap_or_default();
        let order = match std::fs::read(machine.dir.join("assignment.json")) {
            Ok(bytes) => serde_json::from_slice::<Assignment>(&bytes)
                .ok()
                .map(|a| a.order)
                .or(seen.order),
            Err(_) => seen.order,
        };
        if order < seen.order {
            self.broke("3", format!("{name} went back from {:?} to {order:?}", seen.order));
        }
        for call in &calls[seen.calls.min(calls.len())..] {
            let Some((verb, container)) = call.split_once(' ') else {
                continue;
            };
            if matches!(verb, "stop" | "kill" | "remove")
                && seen.running.contains(container)
                && !seen.touched.contains(container)
                && !container.split('.').nth(1).is_some_and(stops_by_itself)
                && let Err(why) = self.justified(&name, container, seen.order, order)
            {
                self.broke("1", format!("{name}: {call} though {why}"));
            }
        }
        seen.calls = calls.len();
        seen.stirred = stirred;
        seen.order = order;
        let containers = machine.engine.containers();
        for foreign in seen.running.iter().filter(|one| one.starts_with("foreign")) {
            if containers
                .get(foreign)
                .is_none_or(|one| one.observed.state != ContainerState::Running)
            {
                self.broke(
                    "8",
                    format!("the foreign container {foreign} on {name} is no longer as it was"),
                );
            }
        }
        let up = |state: &ContainerState| matches!(state, ContainerState::Running | ContainerState::Paused);
        seen.running = containers
            .iter()
            .filter(|(_, one)| up(&one.observed.state))
            .map(|(name, _)| name.clone())
            .collect();
        self.seen.insert(name, seen);
    }

    /// An exclusive slot has one holder, as far as containers run.
    pub fn one_holder(&mut self, machines: &[Machine]) {
        let mut holders: BTreeMap<(&str, &str), &str> = BTreeMap::new();
        let mut doubled = Vec::new();
        for machine in machines {
            let Some(seen) = self.seen.get(&machine.name) else {
                continue;
            };
            for container in &seen.running {
                let mut parts = container.split('.').skip(1);
                let (Some(workload), Some(slot)) = (parts.next(), parts.next()) else {
                    continue;
                };
                if exclusive(workload).is_some()
                    && let Some(other) = holders.insert((workload, slot), &machine.name)
                {
                    doubled.push(format!("{workload}.{slot} runs on {other} and {}", machine.name));
                }
            }
        }
        for what in doubled {
            self.broke("E1", what);
        }
    }

    /// Whether an assignment that was in force between two orders says that this container is not to run.
    fn justified(&self, node: &str, container: &str, from: Option<Order>, to: Option<Order>) -> Result<(), String> {
        let mut parts = container.split('.');
        let (Some(namespace), Some(workload), Some(slot), Some(n)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("it is not a container of ours".to_owned());
        };
        let is_it = |one: &&Assigned| {
            one.namespace.as_str() == namespace && one.workload.as_str() == workload && one.slot.to_string() == slot
        };
        let none = BTreeMap::new();
        let versions = node
            .parse()
            .ok()
            .and_then(|node: NodeName| self.assigned.get(&node))
            .unwrap_or(&none);
        let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
        let mut said = "no assignment was in force".to_owned();
        for (order, assignment) in versions.range(from..=to.max(from)) {
            let Some(one) = assignment.instances.iter().find(is_it) else {
                said = format!("the assignment {order:?} does not speak of it");
                continue;
            };
            if one.state == AssignedState::Absent || one.n.to_string() != n {
                return Ok(());
            }
            said = format!("the assignment {order:?} says {:?} of n {}", one.state, one.n);
        }
        Err(said)
    }
}
