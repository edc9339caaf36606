//! Constraint sets: what services with equal placement and tolerations have in common, judged once for each class of nodes.
//! `place.rs` makes and asks them.

use std::collections::BTreeSet;

use schemas::placement::{Expression, Placement, TaintEffect, Toleration};
use schemas::records::RefusalRule;
use schemas::service::ServiceSpec;

use super::queue::Queue;
use super::world::{NODE_LABEL, Nodes, holds};

/// What equal constraints have in common.
pub(super) struct Set<'a> {
    pub placement: &'a Placement,
    pub tolerations: &'a [Toleration],
    pub names: BTreeSet<&'a str>,
    /// Whether a node's name counts, not only its class.
    by_name: bool,
    /// Whether anything binds instances that run already.
    pub binds: bool,
    /// For each class: what its labels and roles break, and its taints.
    classes: Vec<Option<(Option<RefusalRule>, bool, i64)>>,
    /// For each spread: the domain of each node, and how many there are.
    pub domains: Vec<(Vec<u32>, u32)>,
    pub groups: Option<Vec<Group>>,
}

/// Fitting nodes with the same domains, the best on top.
pub(super) struct Group {
    pub domains: Vec<u32>,
    pub queue: Queue,
}

impl<'a> Set<'a> {
    pub(super) fn new(spec: &'a ServiceSpec, nodes: &Nodes<'a>) -> Self {
        let placement = &spec.placement;
        let by_label = |expression: &Expression| expression.key == NODE_LABEL;
        Self {
            placement,
            tolerations: &spec.tolerations,
            names: placement.node_names.iter().map(|name| name.as_str()).collect(),
            by_name: !placement.node_names.is_empty()
                || placement.required.iter().any(by_label)
                || placement
                    .preferred
                    .iter()
                    .any(|preference| by_label(&preference.expression)),
            binds: !(placement.node_names.is_empty() && placement.roles.is_empty() && placement.required.is_empty()),
            classes: vec![None; nodes.classes.len()],
            domains: Vec::new(),
            groups: None,
        }
    }

    /// What a node's class breaks, whether its taints are tolerated, and its score, lower being better.
    pub(super) fn of_class(&mut self, nodes: &Nodes<'_>, node: u32) -> (Option<RefusalRule>, bool, i64) {
        let class = nodes.list[node as usize].class as usize;
        if self.by_name {
            return self.judge(nodes, node);
        }
        if let Some(known) = self.classes[class] {
            return known;
        }
        let judged = self.judge(nodes, node);
        self.classes[class] = Some(judged);
        judged
    }

    fn judge(&self, nodes: &Nodes<'_>, node: u32) -> (Option<RefusalRule>, bool, i64) {
        let class = &nodes.classes[nodes.list[node as usize].class as usize];
        let label = |expression: &Expression| holds(expression, nodes.label(node, &expression.key));
        let broken = if !self.placement.roles.is_empty()
            && !self.placement.roles.iter().any(|role| class.roles.contains(role))
        {
            Some(RefusalRule::Role)
        } else if !self.placement.required.iter().all(label) {
            Some(RefusalRule::RequiredExpression)
        } else {
            None
        };
        let minded = |effect| {
            class
                .taints
                .iter()
                .filter(move |t| t.effect == effect && !self.tolerations.iter().any(|one| one.covers(t)))
        };
        let liked: i64 = self
            .placement
            .preferred
            .iter()
            .filter(|one| label(&one.expression))
            .map(|one| i64::from(one.weight))
            .sum();
        let disliked = i64::try_from(minded(TaintEffect::PreferNoSchedule).count())
            .unwrap_or(i64::MAX / 1_000)
            .saturating_mul(100);
        (
            broken,
            minded(TaintEffect::NoSchedule).next().is_none(),
            disliked - liked,
        )
    }
}
