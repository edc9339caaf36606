//! `reeve get`: what is declared and how far it is, as tables, or as documents that `apply` takes again.

use std::collections::BTreeMap;

use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::meta::API_VERSION;
use schemas::names::{Namespace, NodeName};
use serde_json::{Value, json};

use crate::Verdict;
use crate::args::{Common, GetArgs};
use crate::connect::{Connection, connect};
use crate::failure::{Exit, Failure};
use crate::follow::Follow;
use crate::output::{self, Cell, Format, Table, complain, print};
use crate::rows;
use crate::select::{Selector, What, what};
use crate::view::{Declared, Instance, View, node_key};

/// Which of them.
struct Filter {
    namespace: Option<Namespace>,
    names: Vec<String>,
    selector: Option<Selector>,
}

impl Filter {
    fn takes(&self, namespace: Option<&Namespace>, name: &str, labels: impl Fn() -> BTreeMap<String, String>) -> bool {
        let namespace = match (&self.namespace, namespace) {
            (Some(wanted), Some(found)) => wanted == found,
            (None, _) | (_, None) => true,
        };
        let named = self.names.is_empty() || self.names.iter().any(|wanted| wanted == name);
        namespace
            && named
            && self
                .selector
                .as_ref()
                .is_none_or(|selector| selector.matches(&labels()))
    }
}

pub async fn get(common: &Common, args: &GetArgs) -> Verdict {
    let kind = args.kind.as_deref().ok_or_else(|| {
        Failure::usage("get what?")
            .help("list services (svc), nodes (no), configfiles (cf), instances (in), events (ev) or all")
    })?;
    let (what, names) = what(kind, &args.names)?;
    let selector = args.selector.as_deref().map(Selector::parse).transpose()?;
    let namespace = (!args.all_namespaces).then(|| common.namespace.clone().unwrap_or_default());
    let filter = Filter {
        namespace,
        names,
        selector,
    };
    if what == What::Events {
        let about = filter.names.first().cloned();
        return crate::status::events_of(common, about.as_deref(), args.all_namespaces, false, args.watch).await;
    }
    if what == What::All && !filter.names.is_empty() {
        return Err(Failure::usage("`get all` takes no names"));
    }
    let connection = connect(common).await?;
    connection.marker().await?;
    if args.watch {
        return watch(&connection, common.output, what, &filter).await;
    }
    let view = View::read(&connection, classes(what)).await?;
    let mut missing = missing(&view, what, &filter);
    match common.output {
        Format::Json | Format::Yaml | Format::Name => documents(&view, what, &filter, common.output),
        Format::Table | Format::Wide => tables(&view, what, &filter, common.output == Format::Wide),
    }
    match (missing.len(), missing.pop()) {
        (_, None) => Ok(Exit::Done),
        (1, Some(name)) => Err(Failure::new(Exit::Failed, format!("there is no {name}"))
            .help(format!("list what there is with `reeve get {}`", listed(what)))),
        (_, Some(name)) => {
            let names = missing.join(", ");
            Err(Failure::new(Exit::Failed, format!("there is no {names} and no {name}"))
                .help(format!("list what there is with `reeve get {}`", listed(what))))
        }
    }
}

fn listed(what: What) -> &'static str {
    match what {
        What::Resource(kind) => kind.plural(),
        What::Instances => "instances",
        What::Events => "events",
        What::All => "all",
    }
}

fn classes(what: What) -> &'static [&'static str] {
    match what {
        What::Resource(Kind::Service | Kind::ConfigFile) => &["desired", "status"],
        What::Resource(Kind::Registry | Kind::Command) => &["desired"],
        What::Resource(Kind::NetworkPolicy) => &["desired", "policies"],
        What::Resource(Kind::VirtualIP) => &["desired", "status"],
        What::Resource(Kind::Secret) => &["desired", "sealed"],
        What::Resource(Kind::Node) => &[
            "desired",
            "status",
            "nodes",
            "sessions",
            "verdicts",
            "cordons",
            "assignments",
            "reports",
        ],
        What::Instances => &["desired", "verdicts", "sessions", "assignments", "reports"],
        What::Events => &["events"],
        What::All => &[
            "desired",
            "status",
            "nodes",
            "sessions",
            "verdicts",
            "cordons",
            "assignments",
            "reports",
        ],
    }
}

fn services<'a>(view: &'a View, filter: &'a Filter) -> impl Iterator<Item = &'a ResourceKey> {
    view.service_keys()
        .filter(|key| filter.takes(key.namespace.as_ref(), key.name.as_str(), || view.labels(key)))
}

fn files<'a>(view: &'a View, filter: &'a Filter) -> impl Iterator<Item = &'a ResourceKey> {
    view.file_keys()
        .filter(|key| filter.takes(key.namespace.as_ref(), key.name.as_str(), || view.labels(key)))
}

fn registries<'a>(view: &'a View, filter: &'a Filter) -> impl Iterator<Item = &'a ResourceKey> {
    let keys = view.declared.keys().filter(|key| key.kind == Kind::Registry);
    keys.filter(|key| filter.takes(None, key.name.as_str(), || view.labels(key)))
}

fn secrets<'a>(view: &'a View, filter: &'a Filter) -> impl Iterator<Item = &'a ResourceKey> {
    view.secret_keys()
        .filter(|key| filter.takes(key.namespace.as_ref(), key.name.as_str(), || view.labels(key)))
}

fn commands<'a>(view: &'a View, filter: &'a Filter) -> impl Iterator<Item = &'a ResourceKey> {
    let keys = view.declared.keys().filter(|key| key.kind == Kind::Command);
    keys.filter(|key| filter.takes(key.namespace.as_ref(), key.name.as_str(), || view.labels(key)))
}

fn policies<'a>(view: &'a View, filter: &'a Filter) -> impl Iterator<Item = &'a ResourceKey> {
    let keys = view.declared.keys().filter(|key| key.kind == Kind::NetworkPolicy);
    keys.filter(|key| filter.takes(key.namespace.as_ref(), key.name.as_str(), || view.labels(key)))
}

fn nodes(view: &View, filter: &Filter) -> Vec<NodeName> {
    let mut names = view.node_names();
    names.retain(|node| filter.takes(None, node.as_str(), || view.node_labels(node)));
    names
}

fn instances<'a>(view: &'a View, filter: &Filter) -> Vec<Instance<'a>> {
    let mut found = view.instances();
    found.retain(|instance| {
        let labels = || {
            view.labels(&crate::view::service_key(
                &instance.name.namespace,
                &instance.name.workload,
            ))
        };
        let whole = instance.name.to_string();
        // `get instances web` lists all of web's.
        let name = if filter.names.contains(&whole) {
            whole
        } else {
            instance.name.workload.to_string()
        };
        filter.takes(Some(&instance.name.namespace), &name, labels)
    });
    found
}

fn virtual_ips<'a>(view: &'a View, filter: &'a Filter) -> impl Iterator<Item = &'a ResourceKey> {
    let keys = view.declared.keys().filter(|key| key.kind == Kind::VirtualIP);
    keys.filter(|key| filter.takes(key.namespace.as_ref(), key.name.as_str(), || view.labels(key)))
}

/// The names asked for that are not there.
fn missing(view: &View, what: What, filter: &Filter) -> Vec<String> {
    let found: Vec<String> = match what {
        What::Resource(Kind::Service) => services(view, filter).map(|key| key.name.to_string()).collect(),
        What::Resource(Kind::Node) => nodes(view, filter).iter().map(ToString::to_string).collect(),
        What::Resource(Kind::ConfigFile) => files(view, filter).map(|key| key.name.to_string()).collect(),
        What::Resource(Kind::Registry) => registries(view, filter).map(|key| key.name.to_string()).collect(),
        What::Resource(Kind::Secret) => secrets(view, filter).map(|key| key.name.to_string()).collect(),
        What::Resource(Kind::Command) => commands(view, filter).map(|key| key.name.to_string()).collect(),
        What::Resource(Kind::NetworkPolicy) => policies(view, filter).map(|key| key.name.to_string()).collect(),
        What::Resource(Kind::VirtualIP) => virtual_ips(view, filter).map(|key| key.name.to_string()).collect(),
        What::Instances => {
            let found = instances(view, filter);
            found
                .iter()
                .flat_map(|found| [found.name.to_string(), found.name.workload.to_string()])
                .collect()
        }
        What::Events | What::All => Vec::new(),
    };
    let word = match what {
        What::Resource(kind) => kind.segment(),
        What::Instances => "instance",
        What::Events | What::All => "",
    };
    let place = match (&filter.namespace, what) {
        (
            Some(namespace),
            What::Resource(
                Kind::Service | Kind::ConfigFile | Kind::Secret | Kind::Command | Kind::NetworkPolicy | Kind::VirtualIP,
            )
            | What::Instances,
        ) => {
            format!(" in namespace `{namespace}`")
        }
        _ => String::new(),
    };
    let missing = filter.names.iter().filter(|name| !found.contains(name));
    missing.map(|name| format!("{word} `{name}`{place}")).collect()
}

/// A row of a listing.
#[derive(Clone, PartialEq)]
struct Row {
    /// What it is about: tells it from every other row.
    id: String,
    /// `kind/name`.
    name: String,
    cells: Vec<Cell>,
}

/// A section of a listing: a head and its rows.
struct Section {
    head: Vec<&'static str>,
    rows: Vec<Row>,
    none: String,
}

fn sections(view: &View, what: What, filter: &Filter, wide: bool) -> Vec<Section> {
    let everywhere = filter.namespace.is_none();
    let place = match &filter.namespace {
        Some(namespace) => format!(" in namespace `{namespace}`"),
        None => String::new(),
    };
    let head = |columns: &[&'static str], namespaced: bool| {
        let namespace = (everywhere && namespaced).then_some("NAMESPACE");
        namespace.into_iter().chain(columns.iter().copied()).collect::<Vec<_>>()
    };
    let row = |namespace: Option<&Namespace>, cells: Vec<Cell>| {
        let namespace = namespace.filter(|_| everywhere).map(Cell::from);
        namespace.into_iter().chain(cells).collect::<Vec<_>>()
    };
    let service_section = || Section {
        head: head(if wide { rows::SERVICE_WIDE } else { rows::SERVICE_HEAD }, true),
        rows: services(view, filter)
            .map(|key| Row {
                id: key.to_string(),
                name: format!("service/{}", key.name),
                cells: row(key.namespace.as_ref(), rows::service_row(view, key, wide)),
            })
            .collect(),
        none: format!("no services{place}"),
    };
    let node_section = || Section {
        head: head(if wide { rows::NODE_WIDE } else { rows::NODE_HEAD }, false),
        rows: nodes(view, filter)
            .iter()
            .map(|node| Row {
                id: node.to_string(),
                name: format!("node/{node}"),
                cells: rows::node_row(view, node, wide),
            })
            .collect(),
        none: "no nodes: start an agent with `reeve agent`".to_owned(),
    };
    let instance_section = || Section {
        head: head(if wide { rows::INSTANCE_WIDE } else { rows::INSTANCE_HEAD }, true),
        rows: instances(view, filter)
            .iter()
            .map(|found| Row {
                id: format!("{}/{}/{}/{}", found.name.namespace, found.name, found.node, found.uid),
                name: format!("instance/{}", found.name),
                cells: row(Some(&found.name.namespace), rows::instance_row(found, wide)),
            })
            .collect(),
        none: format!("no instances{place}"),
    };
    let file_section = || Section {
        head: head(rows::FILE_HEAD, true),
        rows: files(view, filter)
            .map(|key| Row {
                id: key.to_string(),
                name: format!("configfile/{}", key.name),
                cells: row(key.namespace.as_ref(), rows::file_row(view, key, wide)),
            })
            .collect(),
        none: format!("no files{place}: put one with `reeve upload FILE`"),
    };
    let registry_section = || Section {
        head: head(rows::REGISTRY_HEAD, false),
        rows: registries(view, filter)
            .map(|key| Row {
                id: key.to_string(),
                name: format!("registry/{}", key.name),
                cells: rows::registry_row(view, key),
            })
            .collect(),
        none: "no registries: `reeve login HOST` adds one".to_owned(),
    };
    let secret_section = || Section {
        head: head(crate::secrets::HEAD, true),
        rows: secrets(view, filter)
            .map(|key| Row {
                id: key.to_string(),
                name: format!("secret/{}", key.name),
                cells: row(key.namespace.as_ref(), crate::secrets::row(view, key, wide)),
            })
            .collect(),
        none: format!("no secrets{place}: `reeve secret set NAME` makes one"),
    };
    let command_section = || Section {
        head: head(crate::commands::HEAD, true),
        rows: commands(view, filter)
            .map(|key| Row {
                id: key.to_string(),
                name: format!("command/{}", key.name),
                cells: row(key.namespace.as_ref(), crate::commands::row(view, key)),
            })
            .collect(),
        none: format!("no commands{place}: declare one, see `reeve explain command.spec`"),
    };
    let policy_section = || Section {
        head: head(crate::policies::HEAD, true),
        rows: policies(view, filter)
            .map(|key| Row {
                id: key.to_string(),
                name: format!("networkpolicy/{}", key.name),
                cells: row(key.namespace.as_ref(), crate::policies::row(view, key)),
            })
            .collect(),
        none: format!("no network policies{place}: declare one, see `reeve explain networkpolicy.spec`"),
    };
    let virtual_ip_section = || Section {
        head: head(crate::virtual_ips::HEAD, true),
        rows: virtual_ips(view, filter)
            .map(|key| Row {
                id: key.to_string(),
                name: format!("virtualip/{}", key.name),
                cells: row(key.namespace.as_ref(), crate::virtual_ips::row(view, key)),
            })
            .collect(),
        none: format!("no virtual addresses{place}: declare one, see `reeve explain virtualip.spec`"),
    };
    match what {
        What::Resource(Kind::Command) => vec![command_section()],
        What::Resource(Kind::NetworkPolicy) => vec![policy_section()],
        What::Resource(Kind::VirtualIP) => vec![virtual_ip_section()],
        What::Resource(Kind::Secret) => vec![secret_section()],
        What::Resource(Kind::ConfigFile) => vec![file_section()],
        What::Resource(Kind::Registry) => vec![registry_section()],
        What::Resource(Kind::Service) => vec![service_section()],
        What::Resource(Kind::Node) => vec![node_section()],
        What::Instances => vec![instance_section()],
        What::Events => Vec::new(),
        What::All => vec![service_section(), instance_section(), node_section()],
    }
}

fn tables(view: &View, what: What, filter: &Filter, wide: bool) {
    let mut texts = Vec::new();
    for section in sections(view, what, filter, wide) {
        if section.rows.is_empty() {
            if filter.names.is_empty() {
                complain(&format!("{}\n", section.none));
            }
            continue;
        }
        let mut table = Table::new(&section.head);
        section.rows.into_iter().for_each(|row| table.row(row.cells));
        texts.push(table.render(output::limit_of(wide)));
    }
    print(&texts.join("\n"));
}

/// The document of a key as it was applied, with what Reeve says in its metadata.
pub fn document(view: &View, key: &ResourceKey, declared: &Declared) -> Value {
    let Ok(admitted) = &declared.admitted else {
        return json!({ "key": format!("desired/{key}"), "invalid": true, "text": String::from_utf8_lossy(&declared.text) });
    };
    let mut value = admitted.value.clone();
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        let status = view.services.get(key).and_then(|status| status.as_ref().ok());
        let node = key.name.as_str().parse().ok().filter(|_| key.kind == Kind::Node);
        let node = node.and_then(|node: NodeName| view.node_statuses.get(&node)?.as_ref().ok());
        let generation = status
            .and_then(|status| status.generation)
            .or(node.and_then(|status| status.generation))
            .or(view
                .files
                .get(key)
                .and_then(|status| Some(status.as_ref().ok()?.edition?.n)));
        if let Some(namespace) = &key.namespace {
            metadata.insert("namespace".into(), json!(namespace));
        }
        metadata.insert("resourceVersion".into(), json!(declared.mod_revision.to_string()));
        generation.map(|generation| metadata.insert("generation".into(), json!(generation)));
        status
            .and_then(|status| status.uid.clone())
            .map(|uid| metadata.insert("uid".into(), json!(uid)));
    }
    value
}

fn instance_value(instance: &Instance<'_>) -> Value {
    json!({
        "name": instance.name.to_string(),
        "namespace": instance.name.namespace,
        "node": instance.node,
        "uid": instance.uid,
        "phase": instance.phase(),
        "ready": instance.is_ready(),
        "assigned": instance.assigned,
        "reported": instance.reported,
    })
}

fn documents(view: &View, what: What, filter: &Filter, format: Format) {
    let mut found: Vec<(String, Value, Option<String>)> = Vec::new();
    let mut service = || {
        for key in services(view, filter) {
            // What is deleted and not gone yet has no document.
            if let Some(declared) = view.declared.get(key) {
                let raw = declared
                    .admitted
                    .is_err()
                    .then(|| String::from_utf8_lossy(&declared.text).into_owned());
                found.push((format!("service/{}", key.name), document(view, key, declared), raw));
            }
        }
    };
    if matches!(what, What::Resource(Kind::Service) | What::All) {
        service();
    }
    let mut plain = |key: &ResourceKey| {
        let Some(declared) = view.declared.get(key) else { return };
        let invalid = declared.admitted.is_err();
        let raw = invalid.then(|| String::from_utf8_lossy(&declared.text).into_owned());
        let name = format!("{}/{}", key.kind.segment(), key.name);
        found.push((name, document(view, key, declared), raw));
    };
    if matches!(what, What::Resource(Kind::ConfigFile) | What::All) {
        files(view, filter).for_each(&mut plain);
    }
    if matches!(what, What::Resource(Kind::Secret) | What::All) {
        secrets(view, filter).for_each(&mut plain);
    }
    if matches!(what, What::Resource(Kind::Command) | What::All) {
        commands(view, filter).for_each(&mut plain);
    }
    if matches!(what, What::Resource(Kind::NetworkPolicy) | What::All) {
        policies(view, filter).for_each(&mut plain);
    }
    if matches!(what, What::Resource(Kind::VirtualIP) | What::All) {
        virtual_ips(view, filter).for_each(&mut plain);
    }
    if matches!(what, What::Resource(Kind::Registry) | What::All) {
        registries(view, filter).for_each(&mut plain);
    }
    if matches!(what, What::Resource(Kind::Node) | What::All) {
        for node in nodes(view, filter) {
            let key = node_key(&node);
            let (value, raw) = match view.declared.get(&key) {
                Some(declared) => {
                    let raw = declared
                        .admitted
                        .is_err()
                        .then(|| String::from_utf8_lossy(&declared.text).into_owned());
                    (document(view, &key, declared), raw)
                }
                None => (
                    json!({ "apiVersion": API_VERSION, "kind": "Node", "metadata": { "name": node }, "spec": {} }),
                    None,
                ),
            };
            found.push((format!("node/{node}"), value, raw));
        }
    }
    if matches!(what, What::Instances | What::All) {
        for instance in instances(view, filter) {
            found.push((format!("instance/{}", instance.name), instance_value(&instance), None));
        }
    }
    let one = filter.names.len() == 1 && found.len() == 1;
    print(&match format {
        Format::Name | Format::Table | Format::Wide => found.iter().map(|(name, _, _)| format!("{name}\n")).collect(),
        Format::Json if one => output::json(&found[0].1),
        Format::Json => output::json(&Value::Array(found.into_iter().map(|(_, value, _)| value).collect())),
        Format::Yaml => {
            // An invalid document is shown as it was put, so that it can be corrected.
            let texts = found.into_iter().map(|(_, value, raw)| match raw {
                Some(raw) => format!("{}\n", raw.trim_end()),
                None => output::yaml(&value),
            });
            texts.collect::<Vec<_>>().join("---\n")
        }
    });
}

async fn watch(connection: &Connection, format: Format, what: What, filter: &Filter) -> Verdict {
    if format == Format::Yaml || format == Format::Json {
        return watch_documents(connection, format, what, filter).await;
    }
    let mut follow = Follow::cluster(connection).await?;
    let mut tables: Vec<Table> = Vec::new();
    let mut shown: BTreeMap<(usize, String), Row> = BTreeMap::new();
    loop {
        let sections = sections(&follow.view, what, filter, format == Format::Wide);
        let first = tables.is_empty();
        let mut text = String::new();
        let mut now = BTreeMap::new();
        for (number, section) in sections.into_iter().enumerate() {
            if first {
                let mut table = Table::new(&section.head);
                section.rows.iter().for_each(|row| table.row(row.cells.clone()));
                if format != Format::Name {
                    text.push_str(&table.render(output::limit_of(format == Format::Wide)));
                }
                tables.push(table);
            }
            for row in section.rows {
                let id = (number, row.id.clone());
                let news = shown.get(&id) != Some(&row);
                if news && format == Format::Name {
                    text.push_str(&format!("{}\n", row.name));
                } else if news && !first {
                    text.push_str(&tables[number].more(row.cells.clone(), output::limit_of(format == Format::Wide)));
                }
                now.insert(id, row);
            }
        }
        for ((number, _), row) in shown.iter().filter(|(id, _)| !now.contains_key(*id)) {
            if format == Format::Name {
                text.push_str(&format!("{}\n", row.name));
                continue;
            }
            let status = tables[*number].column("STATUS");
            let mut cells = row.cells.clone();
            if let Some(cell) = status.and_then(|column| cells.get_mut(column)) {
                *cell = "Gone".into();
            }
            text.push_str(&tables[*number].more(cells, output::limit_of(format == Format::Wide)));
        }
        shown = now;
        print(&text);
        follow.changed().await?;
    }
}

/// One document per line (JSON) or per `---` (YAML), as each is written.
async fn watch_documents(connection: &Connection, format: Format, what: What, filter: &Filter) -> Verdict {
    let kinds: &[Kind] = match what {
        What::Resource(Kind::Service) => &[Kind::Service],
        What::Resource(Kind::Node) => &[Kind::Node],
        What::Resource(Kind::ConfigFile) => &[Kind::ConfigFile],
        What::Resource(Kind::Registry) => &[Kind::Registry],
        What::Resource(Kind::Secret) => &[Kind::Secret],
        What::Resource(Kind::Command) => &[Kind::Command],
        What::Resource(Kind::NetworkPolicy) => &[Kind::NetworkPolicy],
        What::Resource(Kind::VirtualIP) => &[Kind::VirtualIP],
        What::All => Kind::ALL,
        What::Instances | What::Events => {
            return Err(Failure::usage("only services and nodes can be followed as documents"));
        }
    };
    let mut follow = Follow::cluster(connection).await?;
    let mut shown: BTreeMap<ResourceKey, Value> = BTreeMap::new();
    loop {
        let view = &follow.view;
        for (key, declared) in view.declared.iter().filter(|(key, _)| kinds.contains(&key.kind)) {
            if !filter.takes(key.namespace.as_ref(), key.name.as_str(), || view.labels(key)) {
                continue;
            }
            let value = document(view, key, declared);
            if shown.get(key) != Some(&value) {
                print(&if format == Format::Json {
                    format!("{value}\n")
                } else {
                    format!("---\n{}", output::yaml(&value))
                });
                shown.insert(key.clone(), value);
            }
        }
        shown.retain(|key, _| view.declared.contains_key(key));
        follow.changed().await?;
    }
}
