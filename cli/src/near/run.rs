//! `reeve run`: the commands that are declared by name, and a run of one: in an instance, in all of them, or on nodes. In
//! containers the agent makes the words, out of the store; on nodes, where only who may run anything may run these, they
//! are made here, shown, and confirmed.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use agent::api::ask::{Ask, Asked, Named};
use agent::policy::NodeCommand;
use schemas::command::{CommandNodes, CommandSpec, NODE_TIMEOUT, Rendered};
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{NodeName, ResourceName};
use schemas::records::Phase;
use serde_json::json;

use super::exec::{Session, finish};
use super::host::{Job, everywhere};
use super::terminal::size;
use super::{Ways, failed, list, prepare};
use crate::Verdict;
use crate::args::Common;
use crate::args::near::RunArgs;
use crate::audit;
use crate::commands::{place, spec_of, words};
use crate::connect::connect;
use crate::edit::person;
use crate::failure::{Exit, Failure, printable};
use crate::output::{self, Cell, Format, Table, complain, print};
use crate::view::{Instance, View, command_key, service_key, title};

pub async fn run(common: &Common, args: &RunArgs) -> Verdict {
    let Some(name) = &args.name else {
        return offered(common, args).await;
    };
    let (_, view, ways) = prepare(common).await?;
    let key = command_key(&common.namespace.clone().unwrap_or_default(), name);
    let Some(declared) = view.declared.get(&key) else {
        return Err(unknown(&view, &key));
    };
    let Some(spec) = spec_of(declared) else {
        return Err(Failure::new(Exit::Invalid, format!("{} is not valid", title(&key)))
            .help(format!("`reeve describe command {name}` says what is wrong with it")));
    };
    let mut given = BTreeMap::new();
    for (param, value) in &args.params {
        if given.insert(param.clone(), value.clone()).is_some() {
            return Err(Failure::usage(format!("the parameter `{param}` is given twice")));
        }
    }
    let rendered = spec.render(&given, &args.arguments).map_err(|error| {
        let wanted = spec.parameters.iter().map(|one| {
            let what = crate::commands::parameter(one);
            format!("--param {}=...: {what}", one.name)
        });
        let failure = Failure::usage(format!("cannot run {}: {}", title(&key), printable(&error.to_string())));
        wanted.fold(failure, Failure::detail)
    })?;
    let asked = |ask| Asked { by: person(), ask };
    let jobs = match &spec.nodes {
        Some(nodes) => {
            let chosen = chosen_nodes(&view, &key, nodes, &args.on)?;
            confirm(name, &rendered, &chosen, args.yes)?;
            let seconds = spec.timeout.unwrap_or(NODE_TIMEOUT).millis.div_ceil(1_000);
            let ask = Ask::Host {
                kind: NodeCommand::Exec,
                command: rendered.command,
                seconds: u32::try_from(seconds).unwrap_or(u32::MAX),
                named: Some(named(&key)),
            };
            let job = |node: NodeName| Job {
                node,
                instance: None,
                asked: asked(ask.clone()),
            };
            chosen.into_iter().map(job).collect::<Vec<_>>()
        }
        None => {
            let chosen = chosen_instances(&view, &key, spec, &args.on)?;
            let terminal = spec.tty && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
            // Who runs one without a pipe, from a script, has no input to give.
            let input = terminal || ((spec.stdin || spec.tty) && !spec.all);
            let ask = |instance: &Instance<'_>| Ask::Run {
                command: name.clone(),
                revision: declared.mod_revision,
                instance: Named::from(&instance.name),
                parameters: given.clone(),
                arguments: args.arguments.clone(),
                input,
                terminal: terminal.then(size),
            };
            if let [only] = chosen.as_slice()
                && !common.output.is_for_machines()
            {
                audit::note(format!("{} on node/{}", only.name, only.node));
                let session = Session {
                    input,
                    terminal,
                    keys: false,
                };
                return in_one(&view, &ways, name, only, &asked(ask(only)), session).await;
            }
            let job = |instance: &Instance<'_>| Job {
                node: instance.node.clone(),
                instance: Some(instance.name.to_string()),
                asked: asked(ask(instance)),
            };
            chosen.iter().map(job).collect()
        }
    };
    for job in &jobs {
        audit::note(match &job.instance {
            Some(instance) => format!("{instance} on node/{}", job.node),
            None => format!("node/{}", job.node),
        });
    }
    everywhere(common, &view, &ways, &jobs).await
}

/// As records name it: `default/flush-cache`.
fn named(key: &ResourceKey) -> String {
    let namespace = key.namespace.as_ref().map_or("", |namespace| namespace.as_str());
    format!("{namespace}/{}", key.name)
}

fn unknown(view: &View, key: &ResourceKey) -> Failure {
    let here = view.declared.keys().filter(|one| one.kind == Kind::Command);
    let (same, others): (Vec<_>, Vec<_>) = here.partition(|one| one.namespace == key.namespace);
    let failure = Failure::new(Exit::Failed, format!("there is no {}", title(key)));
    if let Some(other) = others.iter().find(|one| one.name == key.name) {
        let namespace = other.namespace.as_ref().map_or("", |namespace| namespace.as_str());
        return failure.help(format!("there is one in namespace {namespace}: add -n {namespace}"));
    }
    let names: Vec<String> = same.iter().map(|one| one.name.to_string()).collect();
    if names.is_empty() {
        failure.help("none is declared in that namespace; `reeve run -A` lists all")
    } else {
        failure.help(format!("there are {}", list(&names)))
    }
}

async fn in_one(
    view: &View,
    ways: &Ways,
    name: &ResourceName,
    instance: &Instance<'_>,
    asked: &Asked,
    session: Session,
) -> Verdict {
    let node = instance.node;
    let what = format!("run `{name}` in {}", instance.name);
    let client = ways.to(view, node)?;
    let failed = |error| failed(&what, node, &error);
    let talk = client.ask(node, asked).await.map_err(failed)?;
    let ended = session.run(talk).await.map_err(failed)?;
    finish(ended, failed).await
}

/// The instances that are meant: those of --on, the slot's, all that run, or the first that is ready.
fn chosen_instances<'a>(
    view: &'a View,
    key: &ResourceKey,
    spec: &CommandSpec,
    on: &[String],
) -> Result<Vec<Instance<'a>>, Failure> {
    let (Some(service), Some(namespace)) = (&spec.service, &key.namespace) else {
        return Err(Failure::new(
            Exit::Invalid,
            format!("{} says not where it runs", title(key)),
        ));
    };
    let service = service_key(namespace, service);
    let mut all = view.instances_of(&service);
    if all.is_empty() {
        let failure = Failure::new(
            Exit::Failed,
            format!("{} has no instance to run it in", title(&service)),
        );
        return Err(if view.declared.contains_key(&service) {
            failure.help(format!("`reeve describe service {}` says why", service.name))
        } else {
            failure.help("it is not declared")
        });
    }
    if let Some(slot) = spec.slot() {
        all.retain(|one| one.name.slot == slot);
    }
    if !on.is_empty() {
        let is = |one: &Instance<'_>, wanted: &String| {
            one.name.to_string() == *wanted || one.name.slot.to_string() == *wanted
        };
        if let Some(stranger) = on.iter().find(|wanted| !all.iter().any(|one| is(one, wanted))) {
            let names: Vec<String> = all.iter().map(|one| one.name.to_string()).collect();
            return Err(Failure::usage(format!("{} does not run in `{stranger}`", title(key)))
                .help(format!("name one of {}", list(&names))));
        }
        all.retain(|one| on.iter().any(|wanted| is(one, wanted)));
        return Ok(all);
    }
    let runs = |one: &Instance<'_>| one.reported.is_some_and(|reported| reported.phase == Phase::Running);
    if spec.all {
        if all.iter().any(runs) {
            all.retain(runs);
        }
        return Ok(all);
    }
    // One that is reached before one that is not; its agent says why where none runs.
    all.sort_by_key(|one| (!one.is_ready(), !runs(one), !one.heard, one.name.slot.clone()));
    all.truncate(1);
    if all.is_empty() {
        let slot = spec.slot.as_ref().map_or("", |slot| slot.0.as_str());
        return Err(Failure::new(
            Exit::Failed,
            format!("there is no {}.{slot} to run it in", service.name),
        )
        .help(format!("`reeve describe service {}` says why", service.name)));
    }
    Ok(all)
}

fn chosen_nodes(view: &View, key: &ResourceKey, nodes: &CommandNodes, on: &[String]) -> Result<Vec<NodeName>, Failure> {
    let CommandNodes { all, names, labels } = nodes;
    let mut found = view.node_names();
    if let Some(missing) = names.iter().find(|name| !found.contains(name)) {
        return Err(Failure::new(
            Exit::Failed,
            format!("{} names node `{missing}`, which is not there", title(key)),
        )
        .help("list nodes with `reeve get nodes`"));
    }
    found.retain(|node| {
        let own = || view.node_labels(node);
        let fits = || {
            let own = own();
            !labels.is_empty() && labels.iter().all(|(name, value)| own.get(name) == Some(value))
        };
        *all || names.contains(node) || fits()
    });
    if let Some(stranger) = on
        .iter()
        .find(|wanted| !found.iter().any(|node| node.as_str() == *wanted))
    {
        let names: Vec<String> = found.iter().map(ToString::to_string).collect();
        return Err(Failure::usage(format!("{} does not run on `{stranger}`", title(key)))
            .help(format!("it runs on {}", list(&names))));
    }
    if !on.is_empty() {
        found.retain(|node| on.iter().any(|wanted| wanted == node.as_str()));
    }
    if found.is_empty() {
        return Err(Failure::new(Exit::Failed, format!("{} fits no node", title(key)))
            .help("list nodes with their labels: `reeve get nodes -o wide`"));
    }
    Ok(found)
}

/// On nodes a run can do anything: what it is, is shown before, for whoever may write the store may have changed it.
fn confirm(name: &ResourceName, rendered: &Rendered, nodes: &[NodeName], yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let names: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    let command = printable(&words(rendered.command.iter().map(String::as_str)));
    complain(&format!("{name} runs on {}:\n  {command}\n", list(&names)));
    if !output::can_ask() {
        return Err(Failure::usage("a command on nodes is to be confirmed").help("add --yes"));
    }
    if output::ask("Run it?") {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "nothing was run"))
    }
}

/// `reeve run` alone.
async fn offered(common: &Common, args: &RunArgs) -> Verdict {
    let connection = connect(common).await?;
    connection.marker().await?;
    let view = View::read(&connection, &["desired"]).await?;
    let namespace = common.namespace.clone().unwrap_or_default();
    let mut keys: Vec<&ResourceKey> = view.declared.keys().filter(|key| key.kind == Kind::Command).collect();
    if !args.all_namespaces {
        keys.retain(|key| key.namespace.as_ref() == Some(&namespace));
    }
    let declared = keys.len();
    let specs: Vec<(&ResourceKey, &CommandSpec)> = keys
        .into_iter()
        .filter_map(|key| Some((key, spec_of(view.declared.get(key)?)?)))
        .collect();
    if specs.len() < declared {
        complain(&format!(
            "warning: {} not valid: `reeve get commands` says which\n",
            match declared - specs.len() {
                1 => "one command is".to_owned(),
                more => format!("{more} commands are"),
            }
        ));
    }
    match common.output {
        Format::Json | Format::Yaml => {
            let one = |(key, spec): &(&ResourceKey, &CommandSpec)| {
                let CommandSpec {
                    description,
                    parameters,
                    ..
                } = *spec;
                json!({
                    "name": key.name, "namespace": key.namespace, "runs": place(spec), "description": description,
                    "parameters": parameters,
                })
            };
            let value = json!(specs.iter().map(one).collect::<Vec<_>>());
            print(&if common.output == Format::Json {
                output::json(&value)
            } else {
                output::yaml(&value)
            });
        }
        Format::Name => specs
            .iter()
            .for_each(|(key, _)| print(&format!("command/{}\n", key.name))),
        Format::Table | Format::Wide if declared == 0 => {
            let place = if args.all_namespaces {
                String::new()
            } else {
                format!(" in namespace `{namespace}`")
            };
            complain(&format!(
                "no commands{place}: declare one, see `reeve explain command.spec`\n"
            ));
        }
        Format::Table | Format::Wide if specs.is_empty() => {}
        Format::Table | Format::Wide => {
            let head: &[&str] = if args.all_namespaces {
                &["NAMESPACE", "NAME", "RUNS", "PARAMETERS", "WHAT IT DOES"]
            } else {
                &["NAME", "RUNS", "PARAMETERS", "WHAT IT DOES"]
            };
            let mut table = Table::of_sentences(head);
            for (key, spec) in &specs {
                let parameters = spec.parameters.iter().map(|one| match one.default {
                    Some(_) => format!("[{}]", one.name),
                    None => one.name.to_string(),
                });
                let parameters = parameters.chain(spec.extra_arguments.then(|| "[-- ...]".to_owned()));
                let namespace = key.namespace.as_ref().filter(|_| args.all_namespaces);
                let cells = [
                    key.name.to_string(),
                    place(spec),
                    parameters.collect::<Vec<_>>().join(" "),
                    spec.description.clone().unwrap_or_default(),
                ];
                table.row(
                    namespace
                        .map(Cell::from)
                        .into_iter()
                        .chain(cells.map(Cell::from))
                        .collect(),
                );
            }
            print(&table.render(output::limit_of(common.output == Format::Wide)));
        }
    }
    Ok(Exit::Done)
}
