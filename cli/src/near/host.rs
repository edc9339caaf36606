//! `reeve node exec` and `reeve docker`, and named commands in many places: one command on many nodes, or in many instances,
//! at once, through their agents. Every line is printed whole and begins with its place; one that fails keeps nobody else
//! from going on; at the end each one's exit code is told.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use agent::api::AskError;
use agent::api::ask::{Ask, Asked, Ended};
use agent::api::wire::Kind;
use agent::policy::NodeCommand;
use futures::stream::{self, StreamExt as _};
use schemas::names::NodeName;
use serde_json::json;

use super::{Ways, failed, prepare};
use crate::Verdict;
use crate::args::Common;
use crate::args::near::{DockerArgs, NodeExecArgs, OnNodes};
use crate::edit::person;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, complain, print};
use crate::view::View;

/// Nodes that are asked at once.
const AT_ONCE: usize = 32;
/// The longest line that is held back until it is whole.
const MAX_HELD: usize = 64 << 10;
/// The most that is kept of one node's output where all is printed at the end.
const MAX_KEPT: usize = 4 << 20;

pub async fn node_exec(common: &Common, args: &NodeExecArgs) -> Verdict {
    on_nodes(common, NodeCommand::Exec, &args.on, &args.command).await
}

pub async fn docker(common: &Common, args: &DockerArgs) -> Verdict {
    on_nodes(common, NodeCommand::Docker, &args.on, &args.command).await
}

/// A command in one place.
pub(super) struct Job {
    pub node: NodeName,
    /// None: on the node itself.
    pub instance: Option<String>,
    pub asked: Asked,
}

impl Job {
    /// What its lines begin with.
    fn label(&self) -> &str {
        self.instance.as_deref().unwrap_or(self.node.as_str())
    }
}

/// How it went in one place.
struct Outcome<'a> {
    job: &'a Job,
    /// The exit code, or why there is none.
    ended: Result<i64, Failure>,
    took: Duration,
    out: Vec<u8>,
    err: Vec<u8>,
}

async fn on_nodes(common: &Common, kind: NodeCommand, on: &OnNodes, command: &[String]) -> Verdict {
    let (_, view, ways) = prepare(common).await?;
    let nodes = chosen(&view, on)?;
    let seconds = u32::try_from(on.timeout.as_secs()).unwrap_or(u32::MAX).max(1);
    let asked = Asked {
        by: person(),
        ask: Ask::Host {
            kind,
            command: command.to_vec(),
            seconds,
            named: None,
        },
    };
    let jobs = nodes.into_iter().map(|node| Job {
        node,
        instance: None,
        asked: asked.clone(),
    });
    everywhere(common, &view, &ways, &jobs.collect::<Vec<_>>()).await
}

/// Does all of it at once, and tells how each one ended.
pub(super) async fn everywhere(common: &Common, view: &View, ways: &Ways, jobs: &[Job]) -> Verdict {
    let shown = Shown {
        whole: common.output.is_for_machines(),
        width: jobs.iter().map(|job| job.label().len()).max().unwrap_or(0),
        several: jobs.len() > 1,
    };
    let tasks = jobs.iter().map(|job| one(view, ways, job, &shown));
    let mut all: Vec<Outcome<'_>> = stream::iter(tasks).buffer_unordered(AT_ONCE).collect().await;
    all.sort_by(|a, b| (a.job.label(), &a.job.node).cmp(&(b.job.label(), &b.job.node)));
    tell(common, &all);
    let good = all.iter().filter(|outcome| matches!(outcome.ended, Ok(0))).count();
    if let [only] = all.as_mut_slice() {
        // With one place its own end is ours.
        match std::mem::replace(&mut only.ended, Ok(0)) {
            Ok(0) => return Ok(Exit::Done),
            Ok(code) => {
                let _ = std::io::stdout().flush();
                crate::audit::end(u8::try_from(code & 0xff).unwrap_or(1), false).await;
                std::process::exit(i32::try_from(code & 0xff).unwrap_or(1));
            }
            Err(failure) => return Err(failure),
        }
    }
    if good == all.len() {
        return Ok(Exit::Done);
    }
    let unreachable = all.iter().any(|outcome| {
        let failure = outcome.ended.as_ref().err();
        failure.is_some_and(|failure| failure.exit == Exit::Unreachable)
    });
    let exit = if unreachable { Exit::Unreachable } else { Exit::Failed };
    let (at, word) = if jobs.iter().all(|job| job.instance.is_some()) {
        ("in", "instance")
    } else {
        ("on", "node")
    };
    Err(Failure::new(
        exit,
        format!("it succeeded {at} {good} of {}", output::count(all.len(), word)),
    ))
}

fn chosen(view: &View, on: &OnNodes) -> Result<Vec<NodeName>, Failure> {
    let known = view.node_names();
    if on.all {
        let all: Vec<NodeName> = known.into_iter().collect();
        return if all.is_empty() {
            Err(Failure::new(Exit::Failed, "there is no node"))
        } else {
            Ok(all)
        };
    }
    if let Some(stranger) = on.nodes.iter().find(|node| !known.contains(*node)) {
        return Err(Failure::usage(format!("there is no node `{stranger}`")).help("list nodes with `reeve get nodes`"));
    }
    let mut nodes = on.nodes.clone();
    nodes.sort();
    nodes.dedup();
    Ok(nodes)
}

/// How output is shown.
struct Shown {
    /// All at the end, for machines.
    whole: bool,
    width: usize,
    several: bool,
}

impl Shown {
    fn line(&self, job: &Job, kind: Kind, line: &[u8]) {
        let prefix = if self.several {
            format!("{:width$} | ", job.label(), width = self.width)
        } else {
            String::new()
        };
        let mut bytes = prefix.into_bytes();
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        let written = if kind == Kind::Stdout {
            std::io::stdout().lock().write_all(&bytes)
        } else {
            std::io::stderr().lock().write_all(&bytes)
        };
        // Whoever read it has gone; the commands go on to their ends.
        drop(written);
    }
}

async fn one<'a>(view: &View, ways: &Ways, job: &'a Job, shown: &Shown) -> Outcome<'a> {
    let node = &job.node;
    let since = Instant::now();
    let mut held: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    let mut kept: [Vec<u8>; 2] = Default::default();
    let mut take = |kind: Kind, bytes: &[u8]| {
        if shown.whole {
            let kept = &mut kept[usize::from(kind != Kind::Stdout)];
            let room = MAX_KEPT.saturating_sub(kept.len());
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return;
        }
        let held = held.entry(kind as u8).or_default();
        held.extend_from_slice(bytes);
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            shown.line(job, kind, &line[..end]);
        }
        if held.len() > MAX_HELD {
            shown.line(job, kind, &std::mem::take(held));
        }
    };
    let ended = match ways.to(view, node) {
        Err(failure) => Err(failure),
        Ok(client) => {
            let talked = async {
                let mut talk = client.ask(node, &job.asked).await?;
                loop {
                    let frame = talk.next().await?.ok_or(AskError::Ended)?;
                    match frame.kind {
                        Kind::Stdout | Kind::Stderr => take(frame.kind, &frame.payload),
                        Kind::End => {
                            return match serde_json::from_slice(&frame.payload) {
                                Ok(Ended::Exited { code }) => Ok(code),
                                Ok(Ended::Failed(refusal)) => Err(AskError::Refused(refusal)),
                                Ok(Ended::Done | Ended::Gone) | Err(_) => Err(AskError::Ended),
                            };
                        }
                        Kind::Ask
                        | Kind::Answer
                        | Kind::Data
                        | Kind::DataEnd
                        | Kind::Line
                        | Kind::Container
                        | Kind::Resize
                        | Kind::Ping => return Err(AskError::Ended),
                    }
                }
            };
            talked.await.map_err(|error| failed("run the command", node, &error))
        }
    };
    for kind in [Kind::Stdout, Kind::Stderr] {
        if let Some(rest) = held.remove(&(kind as u8)).filter(|rest| !rest.is_empty()) {
            shown.line(job, kind, &rest);
        }
    }
    let [out, err] = kept;
    Outcome {
        job,
        ended,
        took: since.elapsed(),
        out,
        err,
    }
}

fn tell(common: &Common, all: &[Outcome<'_>]) {
    let value = || {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let values: Vec<serde_json::Value> = all
            .iter()
            .map(|outcome| {
                let Outcome {
                    job: Job {
                        node,
                        instance,
                        asked: _,
                    },
                    ended,
                    took,
                    out,
                    err,
                } = outcome;
                let mut value = json!({
                    "node": node, "exitCode": ended.as_ref().ok(), "error": ended.as_ref().err().map(Failure::sentence),
                    "millis": u64::try_from(took.as_millis()).unwrap_or(u64::MAX), "stdout": text(out), "stderr": text(err),
                });
                if let Some(instance) = instance {
                    value["instance"] = json!(instance);
                }
                value
            })
            .collect();
        json!(values)
    };
    match common.output {
        Format::Json => print(&output::json(&value())),
        Format::Yaml => print(&output::yaml(&value())),
        Format::Name => all.iter().for_each(|outcome| match &outcome.job.instance {
            Some(instance) => print(&format!("instance/{instance}\n")),
            None => print(&format!("node/{}\n", outcome.job.node)),
        }),
        Format::Table | Format::Wide if all.len() > 1 => {
            for outcome in all {
                let seconds = outcome.took.as_secs_f32();
                match &outcome.ended {
                    Ok(code) => complain(&format!("{}: exit {code} after {seconds:.1} s\n", outcome.job.label())),
                    Err(failure) => {
                        complain(&format!("{}: {}\n", outcome.job.label(), failure.sentence()));
                        if let Some(remedy) = failure.remedy() {
                            complain(&format!("  {remedy}\n"));
                        }
                    }
                }
            }
        }
        Format::Table | Format::Wide => {}
    }
}
