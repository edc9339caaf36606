//! `reeve status` and `events`: the whole cluster at a glance, and what happened lately; both can be followed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use schemas::names::ResourceName;
use schemas::records::Event;
use serde_json::{Value, json};

use crate::Verdict;
use crate::args::{Common, EventsArgs, WatchArgs};
use crate::connect::{Connection, Marker, connect};
use crate::failure::Exit;
use crate::follow::Follow;
use crate::output::{self, Cell, Format, Table, Tone, complain, count, print};
use crate::rows;
use crate::view::View;

pub async fn status(common: &Common, args: &WatchArgs) -> Verdict {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let mut follow = Follow::cluster(&connection).await?;
    if !args.watch {
        print(&match common.output {
            Format::Json => output::json(&value(&follow.view, &marker, &connection)),
            Format::Yaml => output::yaml(&value(&follow.view, &marker, &connection)),
            Format::Table | Format::Wide | Format::Name => {
                screen(&follow.view, &marker, &connection, common.output == Format::Wide)
            }
        });
        return Ok(Exit::Done);
    }
    if output::on_terminal() && !common.output.is_for_machines() {
        loop {
            let text = screen(&follow.view, &marker, &connection, common.output == Format::Wide);
            let now = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
            // Home, each line up to its end, then the rest of the screen: no flicker.
            let text = text
                .lines()
                .take(rows_of_screen())
                .map(|line| format!("{line}\x1b[K\n"))
                .collect::<String>();
            print(&format!("\x1b[H{text}\x1b[J{now}  Ctrl-C ends\x1b[K"));
            let changed = tokio::time::timeout(Duration::from_secs(1), follow.changed()).await;
            if let Ok(changed) = changed {
                changed?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    loop {
        if common.output == Format::Json {
            let text = value(&follow.view, &marker, &connection).to_string();
            if shown.get("") != Some(&text) {
                print(&format!("{text}\n"));
                shown.insert(String::new(), text);
            }
        } else {
            let now = lines(&follow.view);
            for (id, line) in &now {
                if shown.get(id) != Some(line) {
                    print(&format!("{id}: {line}\n"));
                }
            }
            shown
                .keys()
                .filter(|id| !now.contains_key(*id))
                .for_each(|id| print(&format!("{id}: gone\n")));
            shown = now;
        }
        follow.changed().await?;
    }
}

fn rows_of_screen() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    // No rows: a terminal that does not know its size.
    size.filter(|size| size.ws_row > 0)
        .map_or(1000, |size| usize::from(size.ws_row).saturating_sub(2).max(3))
}

/// What a line of `status --watch` says of each thing.
fn lines(view: &View) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    for key in view.service_keys() {
        let state = rows::service_state(view, key);
        let counts = rows::counts(view, key)
            .map(|counts| format!("{}/{} ready, ", counts.ready, counts.desired))
            .unwrap_or_default();
        let message = if state.word == "Ready" || state.message.is_empty() {
            String::new()
        } else {
            format!(": {}", state.message)
        };
        lines.insert(crate::view::title(key), format!("{counts}{}{message}", state.word));
    }
    for node in view.node_names() {
        lines.insert(format!("node/{node}"), rows::node_state(view, &node).word);
    }
    for instance in view.instances() {
        let id = format!(
            "instance/{}/{} on {}",
            instance.name.namespace, instance.name, instance.node
        );
        let ready = if instance.is_ready() { ", ready" } else { "" };
        lines.insert(id, format!("{}{ready}", instance.phase()));
    }
    lines
}

fn screen(view: &View, marker: &Marker, connection: &Connection, wide: bool) -> String {
    let mut text = String::new();
    let leader = view
        .leader
        .as_deref()
        .unwrap_or("none: start one with `reeve controller`");
    let _ = writeln!(
        text,
        "cluster {}  store {}  leader {leader}",
        marker.record.id, connection.endpoints
    );
    for warning in warnings(view) {
        let style = Tone::Bad.style();
        let _ = writeln!(text, "{style}{}{style:#}", crate::failure::printable(&warning));
    }
    let mut section = |name: &str, head: &[&'static str], rows: Vec<Vec<Cell>>| {
        let _ = writeln!(text, "\n{name}");
        if rows.is_empty() {
            text.push_str("none\n");
            return;
        }
        let mut table = Table::new(head);
        rows.into_iter().for_each(|row| table.row(row));
        text.push_str(&table.render(output::limit()));
    };
    let nodes = view.node_names();
    let services: Vec<_> = view.service_keys().collect();
    let instances = view.instances();
    let head: &[&'static str] = if wide { rows::NODE_WIDE } else { rows::NODE_HEAD };
    section(
        &count(nodes.len(), "node"),
        head,
        nodes.iter().map(|node| rows::node_row(view, node, wide)).collect(),
    );
    let head = if wide { rows::SERVICE_WIDE } else { rows::SERVICE_HEAD };
    let head: Vec<&'static str> = ["NAMESPACE"].into_iter().chain(head.iter().copied()).collect();
    let row = |key: &&schemas::keys::ResourceKey| {
        let namespace = key.namespace.as_ref().map(Cell::from).into_iter();
        namespace.chain(rows::service_row(view, key, wide)).collect()
    };
    section(
        &count(services.len(), "service"),
        &head,
        services.iter().map(row).collect(),
    );
    // What is as it should be is only counted.
    let ready = instances
        .iter()
        .filter(|found| found.is_ready() && !found.is_absent())
        .count();
    let shown = instances
        .iter()
        .filter(|found| instances.len() <= 20 || !found.is_ready())
        .take(100);
    let head: Vec<&'static str> = ["NAMESPACE"]
        .into_iter()
        .chain(rows::INSTANCE_HEAD.iter().copied())
        .collect();
    let row = |found: &crate::view::Instance<'_>| {
        [Cell::from(&found.name.namespace)]
            .into_iter()
            .chain(rows::instance_row(found, false))
            .collect()
    };
    let title = format!("{}, {ready} ready", count(instances.len(), "instance"));
    section(&title, &head, shown.map(row).collect());
    text
}

/// What a person must look at.
fn warnings(view: &View) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(held) = &view.breaker.held {
        warnings.push(format!(
            "held: {} need a yes, such as {} (budget {}): reeve admin ack {}",
            count(held.count as usize, "removal"),
            held.sample.first().map_or("?", String::as_str),
            held.budget,
            &held.digest.as_str()[..8]
        ));
    }
    if !view.foreign.is_empty() {
        let what = count(view.foreign.len(), "key");
        warnings.push(format!(
            "{what} under the prefix: nothing of Reeve's, ignored: {}",
            some(&view.foreign)
        ));
    }
    let records = view
        .assignments
        .iter()
        .filter_map(|(node, record)| Some(format!("assignments/{node}: {}", record.as_ref().err()?)));
    let reports = view
        .reports
        .iter()
        .filter_map(|(node, record)| Some(format!("reports/{node}: {}", record.as_ref().err()?)));
    let facts = view
        .facts
        .iter()
        .filter_map(|(node, record)| Some(format!("nodes/{node}: {}", record.as_ref().err()?)));
    let unreadable: Vec<String> = view
        .unreadable
        .iter()
        .cloned()
        .chain(records)
        .chain(reports)
        .chain(facts)
        .collect();
    if !unreadable.is_empty() {
        let what = count(unreadable.len(), "record");
        warnings.push(format!("{what} cannot be read: {}", some(&unreadable)));
    }
    warnings
}

/// The first few.
fn some(texts: &[String]) -> String {
    let more = if texts.len() > 4 { ", ..." } else { "" };
    texts.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ") + more
}

fn value(view: &View, marker: &Marker, connection: &Connection) -> Value {
    let nodes: Vec<Value> = view
        .node_names()
        .iter()
        .map(|node| {
            let status = view.node_statuses.get(node).and_then(|status| status.as_ref().ok());
            let facts = view.facts.get(node).and_then(|facts| facts.as_ref().ok());
            let state = rows::node_state(view, node);
            json!({ "name": node, "state": state.word, "message": state.message, "verdict": view.verdict(node), "status": status,
                "facts": facts })
        })
        .collect();
    let services: Vec<Value> = view
        .service_keys()
        .map(|key| {
            let status = view.services.get(key).and_then(|status| status.as_ref().ok());
            let state = rows::service_state(view, key);
            let revision = view.declared.get(key).map(|declared| declared.mod_revision);
            json!({ "namespace": key.namespace, "name": key.name, "state": state.word, "message": state.message,
                "revision": revision, "status": status })
        })
        .collect();
    let instances: Vec<Value> = view
        .instances()
        .iter()
        .map(|found| {
            json!({ "namespace": found.name.namespace, "name": found.name.to_string(), "node": found.node, "phase": found.phase(),
                "ready": found.is_ready(), "restarts": found.reported.map(|reported| reported.restarts) })
        })
        .collect();
    json!({
        "cluster": marker.record.id,
        "store": connection.endpoints,
        "leader": view.leader,
        "warnings": warnings(view),
        "breaker": view.breaker,
        "nodes": nodes,
        "services": services,
        "instances": instances,
    })
}

pub async fn events(common: &Common, args: &EventsArgs) -> Verdict {
    events_of(common, args.about.as_deref(), args.all_namespaces, args.watch).await
}

/// Events about something: of a namespace, of one thing, of all.
pub async fn events_of(common: &Common, wanted: Option<&str>, everywhere: bool, watch: bool) -> Verdict {
    let connection = connect(common).await?;
    connection.marker().await?;
    let namespace = common.namespace.clone().unwrap_or_default();
    let fits = |key: &str, event: &Event| {
        let place = key.split('/').next().unwrap_or_default();
        let here = everywhere || place == namespace.as_str() || place == "_";
        here && wanted.is_none_or(|wanted| is_about(&event.about, wanted))
    };
    let text = |table: &mut Table, event: &Event, first: bool| match common.output {
        Format::Json => format!("{}\n", json!(event)),
        Format::Yaml => format!("---\n{}", output::yaml(&json!(event))),
        Format::Name => format!("{}\n", event.about),
        Format::Table | Format::Wide if first => {
            table.row(rows::event_row(event, everywhere));
            String::new()
        }
        Format::Table | Format::Wide => table.more(rows::event_row(event, everywhere), output::limit()),
    };
    let mut table = Table::new(rows::EVENT_HEAD);
    let mut follow = None;
    let view = if watch {
        let started = Follow::class(&connection, "events").await?;
        &follow.insert(started).view
    } else {
        &View::read(&connection, &["events"]).await?
    };
    let now = sorted(view.events.iter().filter(|(key, event)| fits(key, event)));
    let mut out: String = now.iter().map(|(_, event)| text(&mut table, event, true)).collect();
    let people = !common.output.is_for_machines();
    if people && now.is_empty() && !watch {
        complain("no events in the last hour\n");
        return Ok(Exit::Done);
    }
    if people {
        out.push_str(&table.render(output::limit()));
    }
    print(&out);
    let mut shown: BTreeMap<String, Event> = now
        .into_iter()
        .map(|(key, event)| (key.clone(), event.clone()))
        .collect();
    let Some(mut follow) = follow else {
        return Ok(Exit::Done);
    };
    loop {
        follow.changed().await?;
        let news = follow
            .view
            .events
            .iter()
            .filter(|(key, event)| fits(key, event) && shown.get(*key) != Some(event));
        print(
            &sorted(news)
                .iter()
                .map(|(_, event)| text(&mut table, event, false))
                .collect::<String>(),
        );
        shown = follow.view.events.clone();
    }
}

fn sorted<'a>(events: impl Iterator<Item = (&'a String, &'a Event)>) -> Vec<(&'a String, &'a Event)> {
    let mut events: Vec<_> = events.collect();
    events.sort_by(|(a_key, a), (b_key, b)| (&a.time, a_key).cmp(&(&b.time, b_key)));
    events
}

/// `default/service/web` is about `web`, `service/web` and itself; `default/web.2` about `web.2` and `web`.
fn is_about(about: &str, wanted: &str) -> bool {
    let wanted = wanted.strip_prefix("instance/").unwrap_or(wanted);
    let last = about.rsplit('/').next().unwrap_or_default();
    let workload = last.split('.').next().unwrap_or_default();
    let name = wanted.strip_prefix("service/").unwrap_or(wanted);
    about == wanted
        || about.ends_with(&format!("/{wanted}"))
        || last == wanted
        || (workload == name && !about.contains("/node/"))
}

/// Events about a resource or an instance, oldest first; with a workload's name, of its instances too.
pub fn about<'a>(view: &'a View, place: &str, workload: Option<&ResourceName>) -> Vec<&'a Event> {
    let namespace = place.split('/').next().unwrap_or_default();
    let instances = workload.map(|name| format!("{namespace}/{name}."));
    let fits = |event: &Event| {
        event.about == place || instances.as_ref().is_some_and(|prefix| event.about.starts_with(prefix))
    };
    sorted(view.events.iter().filter(|(_, event)| fits(event)))
        .into_iter()
        .map(|(_, event)| event)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_by_every_name_of_what_it_is_about() {
        for (about, wanted, fits) in [
            ("default/service/web", "web", true),
            ("default/service/web", "service/web", true),
            ("default/web.2", "web.2", true),
            ("default/web.2", "instance/web.2", true),
            ("default/web.2", "service/web", true),
            ("default/web2.1", "web", false),
            ("_/node/n1", "node/n1", true),
            ("_/node/web", "service/web", false),
        ] {
            assert_eq!(is_about(about, wanted), fits, "{about} {wanted}");
        }
    }
}
