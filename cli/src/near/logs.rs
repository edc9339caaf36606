//! `reeve logs`: what instances wrote, of many nodes at once, each line whole and each once. Following goes on over restarts
//! of containers and agents, with the instance's next container, and takes in new instances as they come.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Stdout, Write as _};
use std::time::{Duration, Instant};

use agent::api::ask::{Ask, Asked, Ended, Named, Read, Since, Stamp, Why};
use agent::api::lines::Line;
use agent::api::wire::Kind;
use agent::api::{AskError, Client, Talk};
use anstyle::{AnsiColor, Style};
use schemas::names::{InstanceName, NodeName};
use serde_json::json;
use tokio::sync::mpsc;

use super::{Target, Ways, failed, prepare};
use crate::Verdict;
use crate::args::Common;
use crate::args::near::LogsArgs;
use crate::edit::person;
use crate::failure::{Exit, Failure};
use crate::follow::Follow;
use crate::output::{self, Format, complain};
use crate::view::{View, title};

/// Lines that wait to be printed, of one instance.
const WAITING: usize = 64;
/// Before an agent is asked again: at first, for an agent that is restarted is back within a moment and may have work to do
/// at once, and then at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// How long it is asked again so often.
const SOON: Duration = Duration::from_secs(10);
/// How long an instance that is no longer there is not asked for again.
const REST: Duration = Duration::from_secs(1);

/// Whose log: an instance, on a node.
type Source = (InstanceName, NodeName);

/// What a source says.
enum Said {
    Line(Line),
    /// It cannot be asked just now, and is asked again.
    Waits(Failure),
    /// It has said all, and how far it was read.
    Ended(Result<(), Failure>, Option<Read>),
}

/// What all sources are asked.
#[derive(Clone)]
struct Wish {
    follow: bool,
    since: Option<Since>,
    tail: Option<u32>,
    by: String,
}

pub async fn logs(common: &Common, args: &LogsArgs) -> Verdict {
    let target = Target::parse(common, &args.what)?;
    match common.output {
        Format::Table | Format::Wide | Format::Json => {}
        Format::Yaml | Format::Name => {
            return Err(Failure::usage("logs are lines").help("leave -o out, or use -o json: one object a line"));
        }
    }
    let (connection, view, ways) = prepare(common).await?;
    let sources = sources(&target, &view);
    if sources.is_empty() && !(args.follow && view.declared.contains_key(&target.service())) {
        return Err(target.nothing(&view));
    }
    let wish = Wish {
        follow: args.follow,
        since: args.since,
        tail: args.tail,
        by: person(),
    };
    let names: BTreeSet<&InstanceName> = sources.iter().map(|(name, _)| name).collect();
    let prefixed = args.names || names.len() > 1;
    let mut printer = Printer {
        out: BufWriter::new(std::io::stdout()),
        json: common.output == Format::Json,
        prefixed,
        timestamps: args.timestamps,
        width: sources
            .iter()
            .map(|(name, _)| name.to_string().len())
            .max()
            .unwrap_or(0),
        color: anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never,
    };
    if args.follow {
        let follow = Follow::cluster(&connection).await?;
        return followed(&target, follow, ways, wish, printer).await;
    }
    // All at once, in the order in which the lines were written.
    let mut open: Vec<(Source, mpsc::Receiver<Said>, Option<Line>)> = Vec::new();
    for source in sources {
        let (tell, hear) = mpsc::channel(WAITING);
        begin(&ways, &view, &source, &wish, None, tell);
        open.push((source, hear, None));
    }
    let mut exit = Exit::Done;
    loop {
        let mut at = 0;
        while at < open.len() {
            let (_, hear, head) = &mut open[at];
            if head.is_some() {
                at += 1;
                continue;
            }
            match hear.recv().await {
                Some(Said::Line(line)) => *head = Some(line),
                Some(Said::Waits(_)) => {}
                ended @ (Some(Said::Ended(_, _)) | None) => {
                    if let Some(Said::Ended(Err(failure), _)) = ended {
                        exit = worse(exit, failure.exit);
                        printer.flush();
                        say(&failure);
                    }
                    open.remove(at);
                }
            }
        }
        let first = open
            .iter_mut()
            .min_by_key(|(_, _, head)| head.as_ref().map(|line| line.stamp));
        let Some((source, _, head)) = first else { break };
        if let Some(line) = head.take() {
            printer.print(source, &line);
        }
    }
    printer.flush();
    Ok(exit)
}

/// The exit code of several ends: that a node could not be reached counts most.
fn worse(one: Exit, other: Exit) -> Exit {
    if one == Exit::Unreachable || other == Exit::Done {
        one
    } else {
        other
    }
}

fn say(failure: &Failure) {
    complain(&failure.render(output::look()));
}

/// What is tried again and again is said once.
fn say_once(told: &mut BTreeMap<Source, String>, source: &Source, failure: &Failure) {
    let text = failure.render(output::look());
    if told.get(source) != Some(&text) {
        complain(&text);
        told.insert(source.clone(), text);
    }
}

/// The instances that may have a log.
fn sources(target: &Target, view: &View) -> Vec<Source> {
    let all = target.of(view).into_iter();
    let mut found: Vec<Source> = all
        .filter(|one| one.reported.is_some() || !one.is_absent())
        .map(|one| (one.name.clone(), one.node.clone()))
        .collect();
    found.dedup();
    found
}

/// Follows until the service is gone, or for ever.
async fn followed(target: &Target, mut follow: Follow, ways: Ways, wish: Wish, mut printer: Printer) -> Verdict {
    let (tell, mut hear) = mpsc::channel::<(Source, Said)>(WAITING);
    // Those that are asked, and of those that are not any more since when, and how far they were read.
    let mut asked: BTreeMap<Source, Option<(Instant, Option<Read>)>> = BTreeMap::new();
    let mut told: BTreeMap<Source, String> = BTreeMap::new();
    let mut exit = Exit::Done;
    let mut first = true;
    let mut tick = tokio::time::interval(REST);
    loop {
        for source in sources(target, &follow.view) {
            let read = match asked.get(&source) {
                Some(None) => continue,
                Some(Some((since, _))) if since.elapsed() < REST => continue,
                Some(Some((_, read))) => read.clone(),
                None => None,
            };
            printer.width = printer.width.max(source.0.to_string().len());
            printer.prefixed |= asked.keys().any(|(name, _)| *name != source.0);
            // Who joins later is new: all of it is shown.
            let wish = Wish {
                tail: wish.tail.filter(|_| first),
                ..wish.clone()
            };
            let (one, mut said) = mpsc::channel(WAITING);
            begin(&ways, &follow.view, &source, &wish, read, one);
            asked.insert(source.clone(), None);
            let tell = tell.clone();
            tokio::spawn(async move {
                while let Some(said) = said.recv().await {
                    if tell.send((source.clone(), said)).await.is_err() {
                        return;
                    }
                }
            });
        }
        first = false;
        let idle = asked.values().all(Option::is_some);
        let declared = follow.view.declared.contains_key(&target.service());
        if idle && !declared && sources(target, &follow.view).is_empty() {
            printer.flush();
            complain(&format!("{} is gone\n", title(&target.service())));
            return Ok(exit);
        }
        tokio::select! {
            changed = follow.changed() => changed?,
            _ = tick.tick() => {}
            Some((source, said)) = hear.recv() => {
                let mut next = Some((source, said));
                while let Some((source, said)) = next {
                    match said {
                        Said::Line(line) => {
                            told.remove(&source);
                            printer.print(&source, &line);
                        }
                        Said::Waits(failure) => {
                            exit = worse(exit, failure.exit);
                            printer.flush();
                            say_once(&mut told, &source, &failure);
                        }
                        Said::Ended(ended, read) => {
                            if let Err(failure) = ended {
                                exit = worse(exit, failure.exit);
                                printer.flush();
                                say_once(&mut told, &source, &failure);
                            }
                            asked.insert(source, Some((Instant::now(), read)));
                        }
                    }
                    next = hear.try_recv().ok();
                }
                printer.flush();
            }
        }
    }
}

/// Begins to ask a source; what it says comes by the channel.
fn begin(ways: &Ways, view: &View, source: &Source, wish: &Wish, read: Option<Read>, tell: mpsc::Sender<Said>) {
    let (name, node) = source.clone();
    let way = ways.to(view, &node);
    let wish = wish.clone();
    tokio::spawn(async move {
        match way {
            Ok(client) => ask(&client, &name, &node, &wish, read, &tell).await,
            Err(failure) => drop(tell.send(Said::Ended(Err(failure), None)).await),
        }
    });
}

/// One source, from its first line to its last, over any number of conversations.
async fn ask(
    client: &Client,
    name: &InstanceName,
    node: &NodeName,
    wish: &Wish,
    mut read: Option<Read>,
    tell: &mpsc::Sender<Said>,
) {
    let what = format!("read the log of {name}");
    let mut pause = AGAIN.0;
    let mut heard: Option<Instant> = None;
    loop {
        let question = Asked {
            by: wish.by.clone(),
            ask: Ask::Logs {
                instance: Named::from(name),
                follow: wish.follow,
                since: wish.since,
                tail: wish.tail,
                after: read.clone(),
            },
        };
        let broke = match listen(client, node, &question, &mut read, &mut heard, tell).await {
            Ok(ended) => {
                let ended = match ended {
                    Ended::Done | Ended::Exited { code: _ } | Ended::Gone => Ok(()),
                    Ended::Failed(refusal) => Err(failed(&what, node, &AskError::Refused(refusal))),
                };
                let _ = tell.send(Said::Ended(ended, read)).await;
                return;
            }
            Err(broke) => broke,
        };
        let failure = failed(&what, node, &broke);
        let passes = match &broke {
            AskError::Refused(refusal) => match refusal.why {
                Why::Busy | Why::Engine => true,
                // It is not there yet, or no more: whoever follows the store knows.
                Why::NotHere if wish.follow => {
                    let _ = tell.send(Said::Ended(Ok(()), read)).await;
                    return;
                }
                Why::NotHere
                | Why::NotRunning
                | Why::NotUnderstood
                | Why::Denied
                | Why::Unreadable
                | Why::Unrecorded => false,
            },
            AskError::Reach { .. } | AskError::Broke(_) | AskError::Ended | AskError::Silent => true,
            AskError::NoAgent { .. } | AskError::OtherNode { .. } => false,
        };
        if !(wish.follow && passes) {
            let _ = tell.send(Said::Ended(Err(failure), read)).await;
            return;
        }
        let soon = heard.is_some_and(|heard| heard.elapsed() < SOON);
        pause = if soon { AGAIN.0 } else { (pause * 2).min(AGAIN.1) };
        // A short break is nothing that anybody needs to know.
        if !soon && tell.send(Said::Waits(failure)).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// One conversation.
async fn listen(
    client: &Client,
    node: &NodeName,
    question: &Asked,
    read: &mut Option<Read>,
    heard: &mut Option<Instant>,
    tell: &mpsc::Sender<Said>,
) -> Result<Ended, AskError> {
    let mut talk = client.ask(node, question).await?;
    let ended = take(&mut talk, read, tell).await;
    *heard = Some(Instant::now());
    ended
}

async fn take(talk: &mut Talk, read: &mut Option<Read>, tell: &mpsc::Sender<Said>) -> Result<Ended, AskError> {
    while let Some(frame) = talk.next().await? {
        match frame.kind {
            Kind::Line => {
                let line = Line::decode(&frame.payload).ok_or(AskError::Ended)?;
                if let Some(read) = read {
                    read.cursor = line.cursor;
                }
                if tell.send(Said::Line(line)).await.is_err() {
                    return Ok(Ended::Done);
                }
            }
            Kind::Container => *read = Some(serde_json::from_slice(&frame.payload).map_err(|_| AskError::Ended)?),
            Kind::End => return serde_json::from_slice(&frame.payload).map_err(|_| AskError::Ended),
            Kind::Ask
            | Kind::Answer
            | Kind::Data
            | Kind::DataEnd
            | Kind::Stdout
            | Kind::Stderr
            | Kind::Resize
            | Kind::Ping => return Err(AskError::Ended),
        }
    }
    Err(AskError::Ended)
}

/// Prints lines, each whole.
struct Printer {
    out: BufWriter<Stdout>,
    json: bool,
    prefixed: bool,
    timestamps: bool,
    /// Of the longest name.
    width: usize,
    color: bool,
}

/// Colours that are read on light and on dark.
const COLORS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Yellow,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
];

impl Printer {
    fn print(&mut self, (name, node): &Source, line: &Line) {
        let written = if self.json {
            let stream = match line.stream {
                agent::engine::near::Stream::Out => "stdout",
                agent::engine::near::Stream::Err => "stderr",
            };
            let value = json!({
                "time": time(line.stamp), "namespace": name.namespace, "instance": name.to_string(), "node": node,
                "stream": stream, "line": String::from_utf8_lossy(&line.text),
            });
            writeln!(self.out, "{value}")
        } else {
            self.line(name, line)
        };
        self.check(written);
    }

    fn line(&mut self, name: &InstanceName, line: &Line) -> std::io::Result<()> {
        if self.prefixed {
            let text = name.to_string();
            let style = if self.color { color(&text) } else { Style::new() };
            write!(self.out, "{style}{text:width$} |{style:#} ", width = self.width)?;
        }
        if self.timestamps {
            write!(self.out, "{} ", time(line.stamp))?;
        }
        self.out.write_all(&line.text)?;
        self.out.write_all(b"\n")
    }

    fn flush(&mut self) {
        let flushed = self.out.flush();
        self.check(flushed);
    }

    fn check(&self, written: std::io::Result<()>) {
        if written.is_err() {
            // Whoever read it has gone: there is no one left to tell.
            std::process::exit(0);
        }
    }
}

/// The same for a name each time.
fn color(name: &str) -> Style {
    let sum = name.bytes().fold(0_usize, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(usize::from(byte))
    });
    COLORS[sum % COLORS.len()].on_default()
}

/// As the engine wrote it, in nanoseconds.
fn time(stamp: Stamp) -> String {
    let nanos = i32::try_from(stamp.nanos).unwrap_or(0);
    match jiff::Timestamp::new(stamp.seconds, nanos) {
        Ok(time) => format!("{time:.9}"),
        Err(_) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_printed_to_the_nanosecond() {
        let stamp = Stamp {
            seconds: 1_767_323_045,
            nanos: 7,
        };
        assert_eq!(time(stamp), "2026-01-02T03:04:05.000000007Z");
    }

    #[test]
    fn that_a_node_was_not_reached_is_what_the_exit_code_says() {
        assert_eq!(worse(Exit::Done, Exit::Failed), Exit::Failed);
        assert_eq!(worse(Exit::Failed, Exit::Unreachable), Exit::Unreachable);
        assert_eq!(worse(Exit::Unreachable, Exit::Failed), Exit::Unreachable);
        assert_eq!(worse(Exit::Unreachable, Exit::Done), Exit::Unreachable);
    }
}
