//! `reeve status` and `events`: the whole cluster at a glance, and what happened lately; both can be followed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use schemas::names::ResourceName;
use schemas::records::{Event, EventType};
use serde_json::{Value, json};

use crate::Verdict;
use crate::args::{Common, EventsArgs, WatchArgs};
use crate::connect::{Connection, Marker, connect};
use crate::failure::Exit;
use crate::follow::Follow;
use crate::output::{self, Cell, Format, Table, Tone, complain, count, print};
use crate::rows;
use crate::view::{Happened, View};

pub async fn status(common: &Common, args: &WatchArgs) -> Verdict {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let mut follow = Follow::cluster(&connection).await?;
    if !args.watch {
        follow.view.store = troubles(&follow.view, &marker, &connection).await;
        print(&match common.output {
            Format::Json => output::json(&value(&follow.view, &marker, &connection)),
            Format::Yaml => output::yaml(&value(&follow.view, &marker, &connection)),
            Format::Table | Format::Wide | Format::Name => {
                let wide = common.output == Format::Wide;
                screen(&follow.view, &marker, &connection, wide, output::limit_of(wide))
            }
        });
        return Ok(Exit::Done);
    }
    if output::on_terminal() && !common.output.is_for_machines() {
        let screen = Screen::take();
        let ended = live(&mut follow, &marker, &connection, common.output == Format::Wide).await;
        drop(screen);
        return ended;
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

/// The terminal's other screen, given back when this is dropped: what was on the first one is still there afterwards.
struct Screen;

impl Screen {
    fn take() -> Self {
        print("\x1b[?1049h\x1b[?25l\x1b[2J");
        Self
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print("\x1b[?25h\x1b[?1049l");
    }
}

/// Draws the cluster after each change and once a second, until Ctrl-C.
async fn live(follow: &mut Follow, marker: &Marker, connection: &Connection, wide: bool) -> Verdict {
    let mut ends = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let text = screen(&follow.view, marker, connection, wide, Some(output::width()));
        let now = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
        let (rows, all) = (rows_of_screen(), text.lines().count());
        let shown = if all > rows { rows - 1 } else { all };
        // Home, each line up to its end, then the rest of the screen: no flicker.
        let mut page: String = text.lines().take(shown).map(|line| format!("{line}\x1b[K\n")).collect();
        if all > shown {
            let _ = writeln!(page, "... and {} more lines: see `reeve status`\x1b[K", all - shown);
        }
        print(&format!("\x1b[H{page}\x1b[J{now}  Ctrl-C ends\x1b[K"));
        tokio::select! {
            changed = tokio::time::timeout(Duration::from_secs(1), follow.changed()) => if let Ok(changed) = changed {
                changed?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            },
            _ = &mut ends => return Ok(Exit::Done),
        }
    }
}

fn rows_of_screen() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    // No rows: a terminal that does not know its size.
    size.filter(|size| size.ws_row > 0)
        .map_or(1000, |size| usize::from(size.ws_row).saturating_sub(2).max(3))
}

/// With more of a kind than this, `status` lists only what is not as it should be.
const MANY: usize = 20;
/// And at most so many of them.
const MOST: usize = 100;

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

fn screen(view: &View, marker: &Marker, connection: &Connection, wide: bool, limit: Option<usize>) -> String {
    let mut text = String::new();
    let leader = view
        .leader
        .as_deref()
        .unwrap_or("none: start one with `reeve controller`");
    let mut head = |line: String| {
        let line = crate::failure::printable(&line);
        let _ = writeln!(
            text,
            "{}",
            limit.map_or(line.clone(), |width| output::cut(&line, width))
        );
    };
    match &connection.context {
        Some(context) => head(format!("cluster {}, context {context}", marker.record.id)),
        None => head(format!("cluster {}", marker.record.id)),
    }
    head(format!("store {}, leader {leader}", connection.endpoints));
    for warning in warnings(view) {
        let style = Tone::Bad.style();
        let _ = writeln!(text, "{style}{}{style:#}", crate::failure::printable(&warning));
    }
    let mut section = |name: &str, head: &[&'static str], rows: Vec<Vec<Cell>>| {
        let _ = writeln!(text, "\n{name}");
        if rows.is_empty() {
            return;
        }
        let more = rows.len().saturating_sub(MOST);
        let mut table = Table::new(head);
        rows.into_iter().take(MOST).for_each(|row| table.row(row));
        text.push_str(&table.render(limit));
        if more > 0 {
            let _ = writeln!(text, "... and {more} more");
        }
    };
    // What is as it should be is only counted where there is much of it.
    let nodes: Vec<_> = view
        .node_names()
        .into_iter()
        .map(|node| (rows::node_state(view, &node), node))
        .collect();
    let head: &[&'static str] = if wide { rows::NODE_WIDE } else { rows::NODE_HEAD };
    let fine = |state: &rows::State| state.tone == Tone::Good;
    let ready = nodes.iter().filter(|(state, _)| fine(state)).count();
    section(
        &format!("{}, {ready} ready", count(nodes.len(), "node")),
        head,
        nodes
            .iter()
            .filter(|(state, _)| nodes.len() <= MANY || !fine(state))
            .map(|(_, node)| rows::node_row(view, node, wide))
            .collect(),
    );
    let services: Vec<_> = view
        .service_keys()
        .map(|key| (rows::service_state(view, key), key))
        .collect();
    let ready = services.iter().filter(|(state, _)| fine(state)).count();
    let head = if wide { rows::SERVICE_WIDE } else { rows::SERVICE_HEAD };
    let head: Vec<&'static str> = ["NAMESPACE"].into_iter().chain(head.iter().copied()).collect();
    let row = |key: &schemas::keys::ResourceKey| {
        let namespace = key.namespace.as_ref().map(Cell::from).into_iter();
        namespace.chain(rows::service_row(view, key, wide)).collect()
    };
    section(
        &format!("{}, {ready} ready", count(services.len(), "service")),
        &head,
        services
            .iter()
            .filter(|(state, _)| services.len() <= MANY || !fine(state))
            .map(|(_, key)| row(key))
            .collect(),
    );
    let instances = view.instances();
    let ready = instances
        .iter()
        .filter(|found| found.is_ready() && !found.is_absent())
        .count();
    let shown = instances
        .iter()
        .filter(|found| instances.len() <= MANY || !found.is_ready());
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

/// Whether the store can be written, and whether it is what its nodes have seen.
async fn troubles(view: &View, marker: &Marker, connection: &Connection) -> Vec<String> {
    let mut told = Vec::new();
    let (_, ahead) = crate::admin::said_of_epochs(view, &marker.record);
    let applied = |node: &String| {
        let report = view.reports.get(&node.parse::<schemas::names::NodeName>().ok()?)?;
        let report = report.as_ref().ok()?;
        Some(report.applied.restore_epoch)
    };
    let ahead: Vec<String> = ahead
        .into_iter()
        .filter(|node| applied(node).is_some_and(|epoch| epoch >= marker.record.restore_epoch))
        .collect();
    if !ahead.is_empty() {
        told.push(format!(
            "StoreRegressed: {} applied what this store does not hold ({}): it has gone back; what runs is kept. Put the newest \
             backup back with `reeve admin restore --over`, or go on with `reeve admin accept-store`",
            count(ahead.len(), "node"),
            some(&ahead)
        ));
    }
    let errors = runtime::Store::status(&connection.store)
        .await
        .map(|status| status.errors);
    if let Some(error) = errors
        .ok()
        .and_then(|errors| errors.into_iter().find(|error| error.contains("NOSPACE")))
    {
        told.push(format!(
            "StoreUnavailable: the store has no space left and takes no writes ({error}); what runs is kept. Free space, then \
             `reeve admin etcdctl -- alarm disarm`"
        ));
    }
    told
}

/// What a person must look at.
fn warnings(view: &View) -> Vec<String> {
    let mut warnings = view.store.clone();
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
    events_of(common, args.about.as_deref(), args.all_namespaces, args.all, args.watch).await
}

/// Events about something: of a namespace, of one thing, of all.
pub async fn events_of(common: &Common, wanted: Option<&str>, everywhere: bool, all: bool, watch: bool) -> Verdict {
    let connection = connect(common).await?;
    connection.marker().await?;
    let namespace = common.namespace.clone().unwrap_or_default();
    let people = !common.output.is_for_machines();
    let fits = |key: &str, event: &Event| {
        let place = key.split('/').next().unwrap_or_default();
        let here = everywhere || place == namespace.as_str() || place == "_";
        here && wanted.is_none_or(|wanted| is_about(&event.about, wanted))
    };
    let of_machine = |event: &Event| match common.output {
        Format::Yaml => format!("---\n{}", output::yaml(&json!(event))),
        Format::Name => format!("{}\n", event.about),
        Format::Json | Format::Table | Format::Wide => format!("{}\n", json!(event)),
    };
    let mut table = Table::of_sentences(rows::EVENT_HEAD);
    let mut follow = None;
    let view = if watch {
        let started = Follow::class(&connection, "events").await?;
        &follow.insert(started).view
    } else {
        &View::read(&connection, &["events"]).await?
    };
    let now = sorted(
        view.events
            .iter()
            .filter(|(key, found)| fits(key, &found.event))
            .map(|(_, found)| found),
    );
    if !people {
        print(&now.iter().map(|event| of_machine(event)).collect::<String>());
    } else if now.is_empty() && !watch {
        let about = wanted.map(|wanted| format!(" about `{wanted}`")).unwrap_or_default();
        complain(&format!("no events{about} in the last hour\n"));
    } else {
        let shown = if all {
            now.iter().map(|event| (*event).clone()).collect()
        } else {
            few(&now)
        };
        shown
            .iter()
            .for_each(|event| table.row(rows::event_row(event, everywhere)));
        print(&table.render(output::limit()));
    }
    let Some(mut follow) = follow else {
        return Ok(Exit::Done);
    };
    let mut seen = follow
        .view
        .events
        .values()
        .map(|found| found.revision)
        .max()
        .unwrap_or(0);
    loop {
        follow.changed().await?;
        let events = &follow.view.events;
        let news = events
            .iter()
            .filter(|(key, found)| found.revision > seen && fits(key, &found.event));
        let text: String = sorted(news.map(|(_, found)| found))
            .into_iter()
            .filter(|event| !people || all || !is_routine(event))
            .map(|event| {
                if people {
                    table.more(rows::event_row(event, everywhere), output::limit())
                } else {
                    of_machine(event)
                }
            })
            .collect();
        print(&text);
        seen = events.values().map(|found| found.revision).max().unwrap_or(0).max(seen);
    }
}

/// In the store's order: no clock of another machine says what came first.
fn sorted<'a>(events: impl Iterator<Item = &'a Happened>) -> Vec<&'a Event> {
    let mut events: Vec<_> = events.collect();
    events.sort_by_key(|found| found.revision);
    events.into_iter().map(|found| &found.event).collect()
}

/// A step that every change takes, and that its end makes uninteresting.
fn is_routine(event: &Event) -> bool {
    event.kind == EventType::Normal && event.reason.ends_with("Changed") && event.reason != "ReadyChanged"
}

/// The events that matter: without routine, one failure that several conditions name once, and what happened again and
/// again as one line, the last, that says how often.
pub fn few(events: &[&Event]) -> Vec<Event> {
    // What an agent says of an instance need not be said again of its service.
    let of = |about: &str| {
        about
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .split('.')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let told: BTreeSet<(String, &str)> = events
        .iter()
        .filter(|event| event.kind == EventType::Warning && !event.reason.ends_with("Changed"))
        .map(|event| (of(&event.about), event.reason.as_str()))
        .collect();
    let mut causes: BTreeMap<&str, &str> = BTreeMap::new();
    let mut kept: Vec<(Event, usize)> = Vec::new();
    for event in events.iter().filter(|event| !is_routine(event)) {
        if event.reason.ends_with("Changed") {
            // A condition's event begins with the condition's reason.
            let cause = event.message.split(':').next().unwrap_or_default();
            if told.contains(&(of(&event.about), cause)) || causes.insert(&event.about, cause) == Some(cause) {
                continue;
            }
        }
        let same = |(kept, _): &(Event, usize)| {
            (&kept.about, &kept.reason, &kept.message) == (&event.about, &event.reason, &event.message)
        };
        let before = kept.iter().position(same).map_or(0, |place| kept.remove(place).1);
        kept.push(((*event).clone(), before + 1));
    }
    let counted = |(mut event, times): (Event, usize)| {
        if times > 1 {
            let _ = write!(event.message, " ({times} times)");
        }
        event
    };
    kept.into_iter().map(counted).collect()
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
    sorted(view.events.values().filter(|found| fits(&found.event)))
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

    #[test]
    fn of_many_events_the_few_that_matter_are_shown_newest_last() {
        let event = |kind: EventType, about: &str, reason: &str, message: &str| Event {
            schema_version: schemas::records::SchemaVersion::default(),
            time: "2020-01-01T00:00:00Z".to_owned(),
            kind,
            reason: reason.to_owned(),
            message: message.to_owned(),
            about: about.to_owned(),
            node: None,
            by: "controller".to_owned(),
        };
        use EventType::{Normal, Warning};
        let (service, web) = ("default/service/web", "default/web.1");
        let events = [
            event(Normal, service, "AcceptedChanged", "Valid: the spec is valid"),
            event(Normal, service, "ProgressingChanged", "Updating: 0 of 1"),
            event(Warning, web, "Died", "the container ended with code 3"),
            event(Warning, service, "ProgressingChanged", "CrashLoop: web.1 ended"),
            event(Warning, service, "ReadyChanged", "CrashLoop: 0 of 1 are ready"),
            event(
                Warning,
                service,
                "ProgressingChanged",
                "Unhealthy: web.1 does not answer",
            ),
            event(Warning, web, "Unhealthy", "it does not answer"),
            event(Warning, web, "Died", "the container ended with code 3"),
            event(Normal, service, "ReadyChanged", "AllReady: 1 of 1"),
        ];
        let told: Vec<String> = few(&events.iter().collect::<Vec<_>>())
            .iter()
            .map(|event| format!("{} {}", event.reason, event.message))
            .collect();
        assert_eq!(
            told,
            [
                "ProgressingChanged CrashLoop: web.1 ended",
                "Unhealthy it does not answer",
                "Died the container ended with code 3 (2 times)",
                "ReadyChanged AllReady: 1 of 1"
            ]
        );
    }
}
