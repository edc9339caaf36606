//! Why no node fits: every rule that refuses a node, counted over all nodes. Slow and thorough; called only for services
//! that have an instance without a node.

use std::collections::BTreeMap;

use schemas::names::NodeName;
use schemas::placement::{TaintEffect, WhenUnsatisfiable};
use schemas::records::{Refusal, RefusalRule, Verdict};
use schemas::units::{ByteSize, Cpu};

use super::addresses::why_no_room;
use super::pass::Pass;
use super::world::{NONE, holds};

/// How many nodes a refusal names.
const SAMPLE: usize = 10;
/// How many services are explained in one pass; beyond, the count alone has to do.
const EXPLAINED: usize = 200;

/// The refusals of every service with an instance that found no node.
pub(super) fn refusals(pass: &mut Pass<'_>) -> BTreeMap<u32, Vec<Refusal>> {
    let svcs: Vec<u32> = pass.unplaced.keys().copied().take(EXPLAINED).collect();
    svcs.into_iter().map(|svc| (svc, of_service(pass, svc))).collect()
}

#[derive(Default)]
struct Count {
    nodes: u32,
    sample: Vec<NodeName>,
    /// The most that is free, or what to name.
    most: i64,
    named: Vec<String>,
}

fn of_service(pass: &mut Pass<'_>, svc: u32) -> Vec<Refusal> {
    let Some(session) = pass.placer.begin(&pass.nodes, &pass.memory, svc) else {
        return Vec::new();
    };
    let one = &pass.memory.svcs[svc as usize];
    let Some(spec) = one.spec else { return Vec::new() };
    let (placement, need) = (&spec.placement, one.need);
    let mut counts: BTreeMap<RefusalRule, Count> = BTreeMap::new();
    for at in 0..pass.nodes.list.len() {
        let id = u32::try_from(at).unwrap_or(NONE);
        let node = &pass.nodes.list[at];
        let mut refuse = |rule: RefusalRule, most: i64, named: Option<String>| {
            let count = counts.entry(rule).or_insert_with(|| Count {
                most: i64::MIN,
                ..Count::default()
            });
            count.nodes += 1;
            count.most = count.most.max(most);
            if count.sample.len() < SAMPLE {
                count.sample.push(node.name.clone());
            }
            if let Some(named) = named.filter(|named| count.named.len() < 5 && !count.named.contains(named)) {
                count.named.push(named);
            }
        };
        if !node.reachable() || node.facts.is_none() {
            let why = match (&node.held, node.verdict) {
                (Some(_), _) => "held",
                (None, Verdict::Ready) => "without facts",
                (None, Verdict::Unreachable) => "unreachable",
                (None, Verdict::Lost) => "lost",
                (None, Verdict::Retired) => "retired",
            };
            refuse(RefusalRule::NodeNotReady, 0, Some(why.to_owned()));
        } else if node.unsteady {
            refuse(RefusalRule::NodeNotReady, 0, Some("unsteady".to_owned()));
        }
        if node.cordon.is_some() || node.spec.is_some_and(|spec| spec.unschedulable) {
            refuse(RefusalRule::NodeCordoned, 0, None);
        }
        if !placement.node_names.is_empty() && !placement.node_names.contains(node.name) {
            refuse(RefusalRule::NodeName, 0, None);
        }
        let class = &pass.nodes.classes[node.class as usize];
        if !placement.roles.is_empty() && !placement.roles.iter().any(|role| class.roles.contains(role)) {
            refuse(RefusalRule::Role, 0, None);
        }
        for expression in placement
            .required
            .iter()
            .filter(|one| !holds(one, pass.nodes.label(id, &one.key)))
            .take(1)
        {
            refuse(
                RefusalRule::RequiredExpression,
                0,
                Some(format!("{} {:?}", expression.key, expression.operator)),
            );
        }
        let minded = class
            .taints
            .iter()
            .filter(|t| t.effect == TaintEffect::NoSchedule && !spec.tolerations.iter().any(|one| one.covers(t)));
        if let Some(taint) = minded.into_iter().next() {
            let value = if taint.value.is_empty() {
                String::new()
            } else {
                format!("={}", taint.value)
            };
            refuse(RefusalRule::Taint, 0, Some(format!("{}{value}", taint.key)));
        }
        let (cpu, bytes) = pass.placer.free[at];
        if cpu < need.0 && need.0 > 0 {
            refuse(RefusalRule::Cpu, cpu, None);
        }
        if bytes < need.1 && need.1 > 0 {
            refuse(RefusalRule::Memory, bytes, None);
        }
        for (rule, named) in pass.placer.refusals_by_others(&pass.nodes, &pass.memory, &session, id) {
            let of_network = || pass.net.as_ref().map(|net| why_no_room(net, id, node).to_owned());
            let named = if rule == RefusalRule::Address {
                of_network()
            } else {
                named
            };
            refuse(rule, 0, named);
        }
    }
    pass.placer.end(session);
    let published: Vec<String> = spec
        .container
        .ports
        .iter()
        .filter_map(|port| match port.host_port {
            Some(schemas::container::HostPort::Fixed(port)) => Some(port.to_string()),
            Some(schemas::container::HostPort::Auto) => Some("auto".to_owned()),
            None => None,
        })
        .collect();
    counts
        .into_iter()
        .map(|(rule, count)| {
            let named = count.named.join(", ");
            let free_cpu = Cpu {
                millis: u32::try_from(count.most.max(0)).unwrap_or(u32::MAX),
            };
            let free_bytes = ByteSize(u64::try_from(count.most.max(0)).unwrap_or(0));
            let detail = match rule {
                RefusalRule::NodeNotReady => named,
                RefusalRule::NodeCordoned => "nothing new is placed there".to_owned(),
                RefusalRule::NodeName => "not among nodeNames".to_owned(),
                RefusalRule::Role => {
                    let roles: Vec<&str> = placement.roles.iter().take(5).map(|role| role.as_str()).collect();
                    format!("has none of the roles {}", roles.join(", "))
                }
                RefusalRule::RequiredExpression => format!("does not hold: {named}"),
                RefusalRule::Taint => format!("taint not tolerated: {named}"),
                RefusalRule::Cpu => {
                    format!(
                        "needs {} CPU, {free_cpu} free at most",
                        Cpu {
                            millis: u32::try_from(need.0).unwrap_or(u32::MAX)
                        }
                    )
                }
                RefusalRule::Memory => {
                    format!(
                        "needs {}, {free_bytes} free at most",
                        ByteSize(u64::try_from(need.1).unwrap_or(u64::MAX))
                    )
                }
                RefusalRule::Address => format!("no address in the cluster's network: {named}"),
                RefusalRule::HostPort => format!("host port taken: {}", published.join(", ")),
                RefusalRule::MaxPerNode => format!("has {} already", placement.max_per_node.unwrap_or(u32::MAX)),
                RefusalRule::Spread => {
                    let spreads: Vec<String> = placement
                        .spread
                        .iter()
                        .filter(|spread| spread.when_unsatisfiable == WhenUnsatisfiable::DoNotSchedule)
                        .map(|spread| {
                            format!(
                                "{} (at most {} more than the emptiest)",
                                spread.topology_key,
                                spread.max_skew.unwrap_or(1)
                            )
                        })
                        .collect();
                    format!("uneven over {}", spreads.join(", "))
                }
                RefusalRule::Affinity => format!("not near {named}"),
                RefusalRule::AntiAffinity => format!("near {named}"),
            };
            Refusal {
                rule,
                nodes: count.nodes,
                detail,
                sample: count.sample,
            }
        })
        .collect()
}
