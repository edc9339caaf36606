//! `reeve top`: what nodes or instances use, measured by their agents over about a second.

use agent::api::ask::{Ask, Asked, Usage};
use schemas::names::NodeName;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{failed, prepare, whole};
use crate::Verdict;
use crate::args::Common;
use crate::args::near::{TopArgs, TopOf};
use crate::edit::person;
use crate::failure::{Exit, Failure};
use crate::output::{self, Cell, Format, Table, Tone, complain, print};
use crate::view::View;

pub async fn top(common: &Common, args: &TopArgs) -> Verdict {
    let (_, view, ways) = prepare(common).await?;
    let by = person();
    let mut asked: JoinSet<(NodeName, Result<Usage, Failure>)> = JoinSet::new();
    for node in view.node_names() {
        let (way, by) = (ways.to(&view, &node), by.clone());
        asked.spawn(async move {
            let usage = match way {
                Ok(client) => whole(&client, &node, Asked { by, ask: Ask::Top {} })
                    .await
                    .map_err(|error| failed("measure", &node, &error)),
                Err(failure) => Err(failure),
            };
            (node, usage)
        });
    }
    let mut found: Vec<(NodeName, Usage)> = Vec::new();
    let mut exit = Exit::Done;
    while let Some(joined) = asked.join_next().await {
        match joined {
            Ok((node, Ok(usage))) => found.push((node, usage)),
            Ok((_, Err(failure))) => {
                exit = if exit == Exit::Unreachable { exit } else { failure.exit };
                complain(&failure.render(output::look()));
            }
            Err(panic) => return Err(Failure::new(Exit::Failed, "cannot measure").because(&panic)),
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    let namespace = (!args.all_namespaces).then(|| common.namespace.clone().unwrap_or_default());
    for (_, usage) in &mut found {
        usage.instances.retain(|one| {
            namespace
                .as_ref()
                .is_none_or(|namespace| one.instance.namespace == *namespace)
        });
    }
    let (table, value) = match args.what {
        TopOf::Nodes => nodes(&view, &found),
        TopOf::Instances => instances(&found, args.all_namespaces),
    };
    print(&match common.output {
        Format::Table | Format::Wide | Format::Name => table.render(output::limit()),
        Format::Json => output::json(&value),
        Format::Yaml => output::yaml(&value),
    });
    Ok(exit)
}

/// A part of a whole, in percent; None where there is no whole.
fn percent(part: u64, whole: u64) -> Option<u64> {
    (whole > 0).then(|| (u128::from(part) * 100 / u128::from(whole)).min(u128::from(u64::MAX)) as u64)
}

fn share(part: u64, whole: u64) -> Cell {
    match percent(part, whole) {
        None => Cell::from("-"),
        Some(value) => {
            let tone = if value >= 90 { Tone::Bad } else { Tone::Plain };
            Cell::new(format!("{value}%"), tone)
        }
    }
}

/// `12Mi`: three digits at most.
pub(super) fn size(bytes: u64) -> String {
    let units = ["B", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit > 0 && value < 9.95 {
        format!("{value:.1}{}", units[unit])
    } else {
        format!("{value:.0}{}", units[unit])
    }
}

/// Thousandths of a core as percent of one.
fn cpu(millis: u64) -> String {
    format!("{}.{}%", millis / 10, millis % 10)
}

fn instances(found: &[(NodeName, Usage)], all: bool) -> (Table, Value) {
    let mut rows: Vec<(&NodeName, &agent::api::ask::InstanceUsage)> = found
        .iter()
        .flat_map(|(node, usage)| usage.instances.iter().map(move |one| (node, one)))
        .collect();
    rows.sort_by_key(|(node, one)| (one.instance.name(), *node));
    let mut head = vec!["NAME", "NODE", "CPU", "MEMORY", "LIMIT", "OF LIMIT", "PROCESSES"];
    if all {
        head.insert(0, "NAMESPACE");
    }
    let mut table = Table::new(&head);
    let mut values = Vec::new();
    for (node, one) in rows {
        let mut row: Vec<Cell> = vec![
            one.instance.to_string().into(),
            node.into(),
            cpu(one.cpu_millis).into(),
            size(one.memory_bytes).into(),
            size(one.memory_limit_bytes).into(),
            share(one.memory_bytes, one.memory_limit_bytes),
            one.processes.into(),
        ];
        if all {
            row.insert(0, one.instance.namespace.as_str().into());
        }
        table.row(row);
        values.push(json!({
            "namespace": one.instance.namespace, "instance": one.instance.to_string(), "node": node,
            "cpuMillis": one.cpu_millis, "memoryBytes": one.memory_bytes,
            "memoryLimitBytes": one.memory_limit_bytes, "processes": one.processes,
        }));
    }
    (table, Value::Array(values))
}

fn nodes(view: &View, found: &[(NodeName, Usage)]) -> (Table, Value) {
    let mut table = Table::new(&["NAME", "CPU", "OF CPU", "MEMORY", "OF MEMORY", "INSTANCES"]);
    let mut values = Vec::new();
    for (node, usage) in found {
        let facts = view.facts.get(node).and_then(|facts| facts.as_ref().ok());
        let has = facts.map(|facts| facts.capacity).unwrap_or_default();
        let of = |part: Option<u64>, whole: u64| part.map_or(Cell::from("-"), |part| share(part, whole));
        table.row(vec![
            node.into(),
            usage.cpu_millis.map_or("-".to_owned(), cpu).into(),
            of(usage.cpu_millis, u64::from(has.cpu.millis)),
            usage.memory_bytes.map_or("-".to_owned(), size).into(),
            of(usage.memory_bytes, has.memory.0),
            usage.instances.len().into(),
        ]);
        values.push(json!({
            "node": node, "cpuMillis": usage.cpu_millis, "cpuCapacityMillis": has.cpu.millis,
            "memoryBytes": usage.memory_bytes, "memoryCapacityBytes": has.memory.0, "instances": usage.instances.len(),
        }));
    }
    (table, Value::Array(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_shares_are_short() {
        assert_eq!(
            (size(0), size(999), size(1_048_576)),
            ("0B".into(), "999B".into(), "1.0Mi".into())
        );
        assert_eq!(size(u64::MAX), "16384Pi");
        assert_eq!(
            (percent(1, 0), percent(1, 2), percent(u64::MAX, 1)),
            (None, Some(50), Some(u64::MAX))
        );
        assert_eq!(cpu(1234), "123.4%");
    }
}
