//! `reeve images`: what the nodes' engines hold, who uses it, and the removal of what nobody does. The agents decide what is
//! in use, at the moment of the removal.

use std::collections::BTreeMap;

use agent::api::ask::{Ask, Asked, ImageGone, ImageHere};
use schemas::names::NodeName;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::top::size;
use super::{Ways, failed, prepare, whole};
use crate::Verdict;
use crate::args::Common;
use crate::args::near::{ImagesArgs, ImagesPruneArgs, ImagesRmArgs, ImagesVerb};
use crate::edit::person;
use crate::failure::{Exit, Failure, printable};
use crate::output::{self, Cell, Format, Table, Tone, complain, print};
use crate::view::View;

/// Images of one question to remove them: a conversation that says nothing for long is cut off.
const AT_ONCE: usize = 10;

pub async fn images(common: &Common, args: &ImagesArgs) -> Verdict {
    let (_, view, ways) = prepare(common).await?;
    match &args.verb {
        None => list(common, &view, &ways, &args.nodes).await,
        Some(ImagesVerb::Rm(of)) => remove(common, &view, &ways, &args.nodes, of).await,
        Some(ImagesVerb::Prune(of)) => prune(common, &view, &ways, &args.nodes, of).await,
    }
}

/// The nodes that were named, or all.
fn nodes(view: &View, named: &[NodeName]) -> Result<Vec<NodeName>, Failure> {
    let all = view.node_names();
    if let Some(unknown) = named.iter().find(|node| !all.contains(node)) {
        return Err(
            Failure::new(Exit::Failed, format!("there is no node {unknown}")).help("list nodes with `reeve get nodes`")
        );
    }
    let is_meant = |node: &NodeName| named.is_empty() || named.contains(node);
    Ok(all.into_iter().filter(|node| is_meant(node)).collect())
}

/// Asks each node its own question, all at once; what did not answer is told.
async fn ask_all<T: DeserializeOwned + Send + 'static>(
    view: &View,
    ways: &Ways,
    what: &'static str,
    asks: BTreeMap<NodeName, Ask>,
) -> Result<(BTreeMap<NodeName, T>, Exit), Failure> {
    let by = person();
    let mut asked: JoinSet<(NodeName, Result<T, Failure>)> = JoinSet::new();
    for (node, ask) in asks {
        let (way, by) = (ways.to(view, &node), by.clone());
        asked.spawn(async move {
            let answer = match way {
                Ok(client) => whole(&client, &node, Asked { by, ask })
                    .await
                    .map_err(|error| failed(what, &node, &error)),
                Err(failure) => Err(failure),
            };
            (node, answer)
        });
    }
    let (mut found, mut exit) = (BTreeMap::new(), Exit::Done);
    while let Some(joined) = asked.join_next().await {
        match joined {
            Ok((node, Ok(answer))) => {
                found.insert(node, answer);
            }
            Ok((_, Err(failure))) => {
                exit = if exit == Exit::Unreachable { exit } else { failure.exit };
                complain(&failure.render(output::look()));
            }
            Err(panic) => return Err(Failure::new(Exit::Failed, format!("cannot {what}")).because(&panic)),
        }
    }
    Ok((found, exit))
}

type Here = BTreeMap<NodeName, Vec<ImageHere>>;

async fn here(view: &View, ways: &Ways, nodes: Vec<NodeName>) -> Result<(Here, Exit), Failure> {
    let asks = nodes.into_iter().map(|node| (node, Ask::Images {})).collect();
    ask_all(view, ways, "list images", asks).await
}

/// How an image is called: by its names, else by its id.
fn called(image: &ImageHere) -> String {
    match image.references.first() {
        Some(first) if image.references.len() > 1 => {
            format!("{} (and {} more)", printable(first), image.references.len() - 1)
        }
        Some(first) => printable(first),
        None => "<none>".to_owned(),
    }
}

/// The first 12 digits of a digest.
fn short(id: &str) -> String {
    let digits = id.rsplit_once("sha256:").map_or(id, |(_, digits)| digits);
    printable(&digits.chars().take(12).collect::<String>())
}

fn used(image: &ImageHere) -> Cell {
    let users: Vec<String> = image.used_by.iter().take(2).map(|name| printable(name)).collect();
    let more = match image.used_by.len() {
        all if all > 2 => format!(" and {} more", all - 2),
        _ => String::new(),
    };
    match (users.is_empty(), image.wanted) {
        (false, _) => format!("{}{more}", users.join(", ")).into(),
        (true, true) => "assigned".into(),
        (true, false) => Cell::new("-", Tone::Plain),
    }
}

async fn list(common: &Common, view: &View, ways: &Ways, named: &[NodeName]) -> Verdict {
    let (found, exit) = here(view, ways, nodes(view, named)?).await?;
    let mut table = Table::new(&["NODE", "IMAGE", "ID", "DIGEST", "SIZE", "USED BY"]);
    let mut values = Vec::new();
    for (node, images) in &found {
        for image in images {
            table.row(vec![
                node.into(),
                called(image).into(),
                short(&image.id).into(),
                image
                    .digests
                    .first()
                    .map_or_else(|| "-".to_owned(), |digest| short(digest))
                    .into(),
                size(image.size_bytes).into(),
                used(image),
            ]);
            let mut value = json!(image);
            value["node"] = json!(node);
            values.push(value);
        }
    }
    print(&match common.output {
        Format::Table | Format::Wide | Format::Name => table.render(output::limit_of(common.output == Format::Wide)),
        Format::Json => output::json(&Value::Array(values)),
        Format::Yaml => output::yaml(&Value::Array(values)),
    });
    Ok(exit)
}

async fn remove(common: &Common, view: &View, ways: &Ways, named: &[NodeName], args: &ImagesRmArgs) -> Verdict {
    let nodes = nodes(view, named)?;
    let asks = nodes.into_iter().map(|node| {
        let images = args.images.clone();
        (node, Ask::RemoveImages { images })
    });
    let (done, exit) = ask_all::<Vec<ImageGone>>(view, ways, "remove images", asks.collect()).await?;
    // Where a node does not have it, nothing was to be done; that nobody has it is an error.
    let had = |image: &str| {
        let mut all = done.values().flatten().filter(|gone| gone.image == image);
        all.any(|gone| gone.refused.as_deref() != Some(NOT_HERE))
    };
    if let Some(unknown) = args
        .images
        .iter()
        .find(|image| !had(image))
        .filter(|_| exit == Exit::Done)
    {
        return Err(Failure::new(
            Exit::Failed,
            format!("no node that was asked has image `{}`", printable(unknown)),
        )
        .help("list images with `reeve images`"));
    }
    Ok(told(common, &done, exit))
}

/// What an agent says of an image that it does not have.
const NOT_HERE: &str = "this node does not have it";

/// Tells what became of images; how that ends.
fn told(common: &Common, done: &BTreeMap<NodeName, Vec<ImageGone>>, exit: Exit) -> Exit {
    let (mut freed, mut exit) = (0_u64, exit);
    let (mut lines, mut values) = (String::new(), Vec::new());
    for (node, images) in done {
        for gone in images.iter().filter(|gone| gone.refused.as_deref() != Some(NOT_HERE)) {
            let mut value = json!(gone);
            value["node"] = json!(node);
            values.push(value);
            match &gone.refused {
                None => {
                    freed = freed.saturating_add(gone.freed_bytes);
                    lines.push_str(&format!("{node}: {} is removed\n", printable(&gone.image)));
                }
                Some(why) => {
                    exit = if exit == Exit::Done { Exit::Failed } else { exit };
                    lines.push_str(&format!(
                        "{node}: {} stays: {}\n",
                        printable(&gone.image),
                        printable(why)
                    ));
                }
            }
        }
    }
    print(&match common.output {
        Format::Json => output::json(&Value::Array(values)),
        Format::Yaml => output::yaml(&Value::Array(values)),
        Format::Table | Format::Wide | Format::Name => format!("{lines}{} freed\n", size(freed)),
    });
    exit
}

async fn prune(common: &Common, view: &View, ways: &Ways, named: &[NodeName], args: &ImagesPruneArgs) -> Verdict {
    let (found, exit) = here(view, ways, nodes(view, named)?).await?;
    let unused: Here = found
        .into_iter()
        .map(|(node, images)| {
            let mut images = images;
            images.retain(|image| image.in_use().is_none());
            (node, images)
        })
        .filter(|(_, images)| !images.is_empty())
        .collect();
    let machine = common.output.is_for_machines();
    let count: usize = unused.values().map(Vec::len).sum();
    let bytes = unused
        .values()
        .flatten()
        .map(|image| image.size_bytes)
        .fold(0, u64::saturating_add);
    if args.dry_run && machine {
        let all = unused.iter().flat_map(|(node, images)| {
            images.iter().map(move |image| {
                let mut value = json!(image);
                value["node"] = json!(node);
                value
            })
        });
        let all = Value::Array(all.collect());
        print(&if common.output == Format::Yaml {
            output::yaml(&all)
        } else {
            output::json(&all)
        });
        return Ok(exit);
    }
    if !machine {
        for (node, images) in &unused {
            for image in images {
                print(&format!(
                    "{node}: {} {} ({})\n",
                    called(image),
                    short(&image.id),
                    size(image.size_bytes)
                ));
            }
        }
        let many = output::count(count, "image");
        print(&format!("{many} that nobody uses, {} at most\n", size(bytes)));
    }
    if args.dry_run || count == 0 {
        return Ok(exit);
    }
    if !args.yes {
        if !output::can_ask() {
            return Err(Failure::usage("images are removed only with a yes")
                .help("look with --dry-run, and say --yes where nobody can be asked"));
        }
        complain("Remove them? [y/N] ");
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        read.map_err(|error| Failure::new(Exit::Failed, "cannot read the answer").because(&error))?;
        if !matches!(line.trim(), "y" | "Y" | "yes") {
            return Err(Failure::new(Exit::Failed, "nothing was removed"));
        }
    }
    let (mut done, mut end): (BTreeMap<NodeName, Vec<ImageGone>>, Exit) = (BTreeMap::new(), exit);
    let mut left: BTreeMap<NodeName, Vec<String>> = unused
        .into_iter()
        .map(|(node, images)| (node, images.into_iter().map(|image| image.id).collect()))
        .collect();
    while !left.is_empty() {
        let asks = left.iter_mut().map(|(node, ids)| {
            let rest = ids.split_off(ids.len().min(AT_ONCE));
            let images = std::mem::replace(ids, rest);
            (node.clone(), Ask::RemoveImages { images })
        });
        let (some, exit) = ask_all::<Vec<ImageGone>>(view, ways, "remove images", asks.collect()).await?;
        end = if end == Exit::Done { exit } else { end };
        for (node, gone) in some {
            done.entry(node).or_default().extend(gone);
        }
        left.retain(|_, ids| !ids.is_empty());
    }
    Ok(told(common, &done, end))
}
