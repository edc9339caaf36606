//! Waiting until what was written is in force: live progress, and at the end a sentence for people and an exit code for
//! machines. `apply`, `scale`, `delete`, `drain` and `node rm` call it; it looks at statuses only, and decides nothing.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use runtime::{Store as _, StoreError, StoreErrorKind};
use schemas::keys::{Key, ResourceKey};
use schemas::kinds::Kind;
use schemas::names::NodeName;
use schemas::records::{Condition, ConditionStatus, ConditionType, FailingReason, Refusal, ServiceStatus};

use crate::connect::Connection;
use crate::failure::{Exit, Failure};
use crate::follow::Follow;
use crate::output::{self, ago, complain, short};
use crate::view::{Instance, View, condition, service_key, stopped, title};

/// How long no node may fit before that is the answer: nodes that are about to join get this long.
const UNSCHEDULABLE_GRACE: Duration = Duration::from_secs(3);
/// How often lines of progress are printed where nothing can be rewritten.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// After so long it is asked whether anybody leads, and whether the store is full.
const LOOK_AFTER: Duration = Duration::from_secs(3);
/// How often, 200 ms apart, reports are read again for the last lines of what fails.
const LOG_TRIES: usize = 6;

/// What must become true.
#[derive(Clone, Debug)]
pub enum Goal {
    /// The document written at this revision is in force, all its instances are ready, and those it removes are gone.
    InForce {
        key: ResourceKey,
        revision: i64,
        removes: bool,
    },
    /// A service has another spec in force than at this generation, and all its instances are ready.
    Renewed { key: ResourceKey, before: Option<u64> },
    /// Nothing is left of it.
    Gone { key: ResourceKey },
}

/// How far a goal is.
#[derive(Debug)]
enum Far {
    Done(String),
    Waiting(String),
    /// No node fits; an answer only when it stays so.
    NoNode(Box<Failure>),
    Failed(Box<Failure>),
}

/// One line that says how far things are: rewritten on a terminal, printed now and then elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    last: String,
    printed: Instant,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            bar,
            quiet,
            last: String::new(),
            printed: Instant::now(),
        }
    }

    pub fn say(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        } else if !self.quiet && text != self.last && self.printed.elapsed() >= LINE_EVERY {
            complain(&format!("{text}\n"));
            self.printed = Instant::now();
            text.clone_into(&mut self.last);
        }
    }

    /// A line that stays.
    pub fn done(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| complain(&format!("{line}\n"))),
            None if !self.quiet => complain(&format!("{line}\n")),
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Waits for all goals; the first that fails ends the waiting.
pub async fn wait(connection: &Connection, goals: Vec<Goal>, timeout: Duration, quiet: bool) -> Result<(), Failure> {
    let began = Instant::now();
    // Where something is removed, assignments and reports tell when it is gone.
    let removes = goals
        .iter()
        .any(|goal| matches!(goal, Goal::InForce { removes: true, .. }));
    let mut follow = if removes {
        Follow::cluster(connection).await?
    } else {
        Follow::class(connection, "status").await?
    };
    let mut progress = Progress::new(quiet);
    let mut open: Vec<(Goal, Option<Instant>)> = goals.into_iter().map(|goal| (goal, None)).collect();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut leaderless = false;
    let mut full = false;
    loop {
        let mut says = Vec::new();
        let mut still = Vec::new();
        for (goal, since) in open {
            match far(&follow.view, &goal) {
                Far::Done(line) => progress.done(&format!("{line} after {}", short(began.elapsed().as_secs()))),
                Far::Waiting(line) => {
                    says.push(line);
                    still.push((goal, None));
                }
                Far::NoNode(failure) => {
                    let since = since.unwrap_or_else(Instant::now);
                    if since.elapsed() >= UNSCHEDULABLE_GRACE {
                        return Err(*failure);
                    }
                    says.push(failure.message.clone());
                    still.push((goal, Some(since)));
                }
                Far::Failed(failure) => return Err(with_logs(connection, &goal, *failure).await),
            }
        }
        open = still;
        let Some(first) = says.first() else { return Ok(()) };
        let more = if says.len() > 1 {
            format!(" (and {} more)", says.len() - 1)
        } else {
            String::new()
        };
        let nobody = match (full, leaderless) {
            (true, _) => "; the store is full (NOSPACE), so that nothing more can be written",
            (false, true) => "; no controller leads: start one with `reeve controller`",
            (false, false) => "",
        };
        let line = format!("{first}{more}{nobody}");
        progress.say(&line);
        if began.elapsed() >= timeout {
            let message = format!("not in force after {}: {line}", short(timeout.as_secs()));
            let help = if full {
                let remedy = StoreError::new("write", "", StoreErrorKind::NoSpace).remedy();
                format!(
                    "{}; what was written stays, and goes on then",
                    remedy.unwrap_or_default()
                )
            } else {
                "what was written stays and goes on; follow it with `reeve status --watch`, or wait longer with --timeout".to_owned()
            };
            let failure = Failure::new(Exit::TimedOut, message).help(help);
            return Err(match open.first() {
                Some((goal, _)) => with_logs(connection, goal, failure).await,
                None => failure,
            });
        }
        tokio::select! {
            changed = follow.changed() => changed?,
            _ = tick.tick() => {
                if began.elapsed() > LOOK_AFTER {
                    leaderless = matches!(connection.get(&Key::Election).await, Ok(None));
                    // A store that takes this one's small document may have no room for the leader's.
                    let status = connection.store.status().await;
                    full = status.is_ok_and(|status| status.errors.iter().any(|error| error.contains("NOSPACE")));
                }
            }
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::new(Exit::Failed, "no longer waiting; what was written stays and goes on")
                    .help("follow it with `reeve status --watch`"));
            }
        }
    }
}

fn far(view: &View, goal: &Goal) -> Far {
    match goal {
        Goal::Gone { key } => match key.kind {
            Kind::Service => match view.services.get(key) {
                None => Far::Done(format!("{} is gone", title(key))),
                Some(Ok(_) | Err(_)) => {
                    let left = view.instances_of(key).len();
                    Far::Waiting(format!("{}: {} to stop", title(key), output::count(left, "instance")))
                }
            },
            // A node goes on without its resource.
            Kind::Node | Kind::ConfigFile | Kind::Registry | Kind::Secret | Kind::Command | Kind::NetworkPolicy | Kind::VirtualIP => {
                Far::Done(format!("{} is deleted", title(key)))
            }
        },
        Goal::Renewed { key, before } => match view.services.get(key) {
            None => Far::Done(format!("{} is gone", title(key))),
            Some(Ok(status)) if status.generation > *before => match service(key, status) {
                Far::Failed(failure) => Far::Failed(Box::new(failure.help(
                    "put a better value, or take it back with `reeve secret undo` or `reeve files undo`; the other instances keep the one they have",
                ))),
                far @ (Far::Done(_) | Far::Waiting(_) | Far::NoNode(_)) => far,
            },
            Some(Ok(_) | Err(_)) => Far::Waiting(format!("{}: waits for the controller", title(key))),
        },
        Goal::InForce { key, revision, removes } => match key.kind {
            Kind::Service => match view.services.get(key) {
                Some(Ok(status)) if status.observed_revision >= *revision => match service(key, status) {
                    Far::Done(_) if *removes && leaving(view, key) > 0 => Far::Waiting(format!(
                        "{}: {} to stop",
                        title(key),
                        output::count(leaving(view, key), "instance")
                    )),
                    far @ (Far::Done(_) | Far::Waiting(_) | Far::NoNode(_) | Far::Failed(_)) => far,
                },
                _ => Far::Waiting(format!("{}: waits for the controller", title(key))),
            },
            Kind::Node => {
                let node: Option<NodeName> = key.name.as_str().parse().ok();
                let status = node.and_then(|node| view.node_statuses.get(&node)?.as_ref().ok());
                let status = status.map(|status| (status.observed_revision, &status.conditions[..]));
                taken(key, *revision, status)
            }
            Kind::ConfigFile => {
                let status = view.files.get(key).and_then(|status| status.as_ref().ok());
                let status = status.map(|status| (status.observed_revision, &status.conditions[..]));
                taken(key, *revision, status)
            }
            // Nothing is planned by it: what is written is in force.
            Kind::Registry | Kind::Secret | Kind::Command | Kind::NetworkPolicy => {
                Far::Done(format!("{} is in force", title(key)))
            }
            Kind::VirtualIP => match crate::virtual_ips::held(view, key, *revision) {
                Ok(told) => Far::Done(told),
                Err(waits) => Far::Waiting(waits),
            },
        },
    }
}

/// How far a resource is that runs nothing: it is to be accepted, and no more.
fn taken(key: &ResourceKey, revision: i64, status: Option<(i64, &[Condition])>) -> Far {
    match status.filter(|(observed, _)| *observed >= revision) {
        None => Far::Waiting(format!("{}: waits for the controller", title(key))),
        Some((_, conditions)) => match condition(conditions, ConditionType::Accepted) {
            Some(refused) if refused.status == ConditionStatus::False => {
                Far::Failed(Box::new(refusal(Exit::Invalid, key, "was not accepted", refused)))
            }
            _ => Far::Done(format!("{} is in force", title(key))),
        },
    }
}

/// Instances ordered to go that their nodes still have.
fn leaving(view: &View, key: &ResourceKey) -> usize {
    view.instances_of(key)
        .iter()
        .filter(|found| found.is_absent() && found.heard)
        .count()
}

fn service(key: &ResourceKey, status: &ServiceStatus) -> Far {
    let is = |kind, what| condition(&status.conditions, kind).filter(|found| found.status == what);
    if let Some(refused) = is(ConditionType::Accepted, ConditionStatus::False) {
        let mut failure = refusal(Exit::Invalid, key, "was not accepted", refused);
        for problem in &status.problems {
            failure = failure.detail(problem.line());
        }
        return Far::Failed(Box::new(failure));
    }
    let counts = status.counts;
    if let Some(nowhere) = is(ConditionType::Scheduled, ConditionStatus::False) {
        let missing = counts.desired.saturating_sub(counts.assigned);
        let mut failure = if nowhere.reason == "NoNodeFits" && missing > 0 {
            let what = format!(
                "no node takes {missing} of {} instances of {}",
                counts.desired,
                title(key)
            );
            Failure::new(Exit::Unschedulable, format!("{what}{}", since(nowhere)))
        } else {
            refusal(Exit::Unschedulable, key, "has instances that no node takes", nowhere)
        };
        for refusal in &status.refusals {
            failure = failure.detail(refusal_line(refusal));
        }
        let failure =
            failure.help("give a node what is missing, or change the manifest; what is placed already keeps running");
        return Far::NoNode(Box::new(failure));
    }
    if let Some(stopped) = stopped(status) {
        let failure = refusal(Exit::Failed, key, "failed", stopped);
        let remedy = if stopped.reason == format!("{:?}", FailingReason::PolicyDenied) {
            "correct the manifest and apply it again, or allow it in that node's policy: it goes on by itself"
        } else {
            "correct the manifest and apply it again"
        };
        let help = if counts.ready > 0 {
            format!(
                "the change stops there and the other instances keep serving ({} of {} ready); {remedy}",
                counts.ready, counts.desired
            )
        } else {
            remedy.to_owned()
        };
        return Far::Failed(Box::new(failure.help(help)));
    }
    let ready = is(ConditionType::Ready, ConditionStatus::True).is_some();
    let progressing = is(ConditionType::Progressing, ConditionStatus::True);
    if ready && progressing.is_none() {
        return Far::Done(format!(
            "{} is ready: {} of {}",
            title(key),
            counts.ready,
            counts.desired
        ));
    }
    let why = progressing
        .or(condition(&status.conditions, ConditionType::Ready))
        .map(|found| news(&found.message));
    let why = why
        .filter(|text| !text.is_empty())
        .map(|text| format!(": {text}"))
        .unwrap_or_default();
    let updated = if counts.updated < counts.desired {
        format!(", {} updated", counts.updated)
    } else {
        String::new()
    };
    Far::Waiting(format!(
        "{}: {} of {} ready{updated}{why}",
        title(key),
        counts.ready,
        counts.desired
    ))
}

/// What a condition's message says beyond `1 of 2 instances are ready`, which the counts beside it say.
fn news(message: &str) -> &str {
    let (first, rest) = message.split_once("; ").unwrap_or((message, ""));
    let counts = first.contains(" instances are ") && first.starts_with(|c: char| c.is_ascii_digit());
    if counts { rest } else { message }
}

/// ` (for 3m)`: nothing where it has just begun.
fn since(found: &Condition) -> String {
    let ago = found.since.as_deref().and_then(ago).filter(|ago| ago != "0s");
    ago.map(|ago| format!(" (for {ago})")).unwrap_or_default()
}

/// `service/web failed: ImageNotFound: ... (for 3s)`.
fn refusal(exit: Exit, key: &ResourceKey, what: &str, found: &Condition) -> Failure {
    let since = since(found);
    let Condition {
        kind: _,
        status: _,
        reason,
        message,
        since: _,
    } = found;
    let message = crate::failure::printable(message);
    Failure::new(exit, format!("{} {what}: {reason}: {message}{since}", title(key)))
}

/// A refusal in words: `Cpu: 3 nodes (n1, n2, n3): needs 2, 500m free at most`.
pub fn refusal_line(refusal: &Refusal) -> String {
    let Refusal {
        rule,
        nodes,
        detail,
        sample,
    } = refusal;
    let names: Vec<&str> = sample.iter().take(3).map(NodeName::as_str).collect();
    let more = if *nodes as usize > names.len() { ", ..." } else { "" };
    format!(
        "{rule:?}: {} ({}{more}): {detail}",
        output::count(*nodes as usize, "node"),
        names.join(", ")
    )
}

/// Adds what the failing instances last logged.
async fn with_logs(connection: &Connection, goal: &Goal, mut failure: Failure) -> Failure {
    let (Goal::InForce {
        key,
        revision: _,
        removes: _,
    }
    | Goal::Renewed { key, before: _ }
    | Goal::Gone { key }) = goal;
    if key.kind != Kind::Service || !matches!(failure.exit, Exit::Failed | Exit::TimedOut) {
        return failure;
    }
    // The sentence stands without them, too. A report may come a moment before the one with the last lines.
    let mut view = View::default();
    for _ in 0..LOG_TRIES {
        let Ok(read) = View::read(connection, &["assignments", "reports", "sessions", "verdicts"]).await else {
            return failure;
        };
        view = read;
        let mut failing = view
            .instances_of(key)
            .into_iter()
            .filter_map(|found| found.reported?.failing.as_ref());
        if failing.all(|failing| !failing.logs.is_empty() || !logs(failing.reason)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for found in view
        .instances_of(key)
        .iter()
        .filter(|found| found.reported.is_some_and(|it| it.failing.is_none()))
        .take(1)
    {
        if let Some(coming) = crate::rows::coming(found) {
            failure = failure.detail(format!("{} on {}: {coming}", found.name, found.node));
        }
    }
    let failing = view
        .instances_of(key)
        .into_iter()
        .filter_map(|found| Some((found.name, found.node, found.reported?.failing.as_ref()?)));
    for (name, node, failing) in failing.take(1) {
        if failure.message.contains(&crate::failure::printable(&failing.message)) {
            if !failing.logs.is_empty() {
                failure = failure.detail(format!("{name} on {node} said last:"));
            }
        } else {
            failure = failure.detail(format!("{name} on {node}: {:?}: {}", failing.reason, failing.message));
        }
        let skip = failing.logs.len().saturating_sub(5);
        for line in failing.logs.iter().skip(skip) {
            failure = failure.detail(format!("| {line}"));
        }
    }
    // What a node says of itself may be why nothing moves on it.
    let timed_out = failure.exit == Exit::TimedOut;
    let waiting = view
        .instances_of(key)
        .into_iter()
        .filter(|found| timed_out || !found.is_ready());
    let nodes: BTreeSet<&NodeName> = waiting.map(|found| found.node).collect();
    for node in nodes.into_iter().take(3) {
        let report = view.reports.get(node).and_then(|report| report.as_ref().ok());
        for condition in report.iter().flat_map(|report| &report.conditions) {
            failure = failure.detail(format!("node {node}: {}: {}", condition.reason, condition.message));
        }
    }
    failure
}

/// Whether a container that fails for this reason has run, and so may have said something.
fn logs(reason: FailingReason) -> bool {
    reason == FailingReason::CrashLoop
}

/// Why an instance is still on a node that is to be emptied; nothing where it is simply on its way.
fn stays(view: &View, found: &Instance<'_>) -> Vec<String> {
    if found.is_orphan() {
        return vec![format!(
            "no record knows it; `reeve admin remove-orphan {} {}/{}` takes it away",
            found.node, found.name.namespace, found.name
        )];
    }
    if found.is_absent() {
        if let Some(failing) = found.reported.and_then(|reported| reported.failing.as_ref()) {
            let message = crate::failure::printable(&failing.message);
            return vec![format!("it does not go: {:?}: {message}", failing.reason)];
        }
        return if found.heard {
            Vec::new()
        } else {
            vec!["it goes when its node is back: no agent is heard there".to_owned()]
        };
    }
    let key = service_key(&found.name.namespace, &found.name.workload);
    let Some(Ok(status)) = view.services.get(&key) else {
        return Vec::new();
    };
    if !status.refusals.is_empty() {
        let nowhere = |refusal: &Refusal| format!("nowhere to go: {}", refusal_line(refusal));
        return status.refusals.iter().map(nowhere).collect();
    }
    if let Some(stopped) = stopped(status) {
        let message = crate::failure::printable(&stopped.message);
        return vec![format!(
            "{} has stopped changing: {}: {message}",
            title(&key),
            stopped.reason
        )];
    }
    let progressing = condition(&status.conditions, ConditionType::Progressing);
    let waits = progressing.filter(|found| found.status == ConditionStatus::True);
    waits
        .map(|found| crate::failure::printable(&found.message))
        .filter(|message| !message.is_empty())
        .into_iter()
        .collect()
}

/// Why the instances that are left stay, each workload once: three of them.
fn reasons(view: &View, left: &[&Instance<'_>]) -> Vec<String> {
    let mut told = BTreeSet::new();
    let mut lines = Vec::new();
    for found in left {
        let why = stays(view, found);
        if !why.is_empty() && told.len() < 3 && told.insert((&found.name.namespace, &found.name.workload)) {
            lines.extend(why.iter().map(|why| format!("{} on {}: {why}", found.name, found.node)));
        }
    }
    lines
}

/// Waits until nothing is left on nodes.
pub async fn until_empty(
    connection: &Connection,
    nodes: &[NodeName],
    timeout: Duration,
    quiet: bool,
) -> Result<(), Failure> {
    let began = Instant::now();
    let mut follow = Follow::cluster(connection).await?;
    let mut progress = Progress::new(quiet);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        let leaderless = follow.view.leader.is_none() && began.elapsed() > LOOK_AFTER;
        let all = follow.view.instances();
        // On a node that cannot be heard, what was ordered counts.
        let left: Vec<&Instance<'_>> = all
            .iter()
            .filter(|found| nodes.contains(found.node) && (found.heard || !found.is_absent()))
            .collect();
        let Some(first) = left.first() else { return Ok(()) };
        let line = format!(
            "{} left, such as {} on {}",
            output::count(left.len(), "instance"),
            first.name,
            first.node
        );
        let mut why = stays(&follow.view, first);
        if leaderless {
            why = vec!["no controller leads: start one with `reeve controller`".to_owned()];
        }
        progress.say(&match why.first() {
            Some(why) => format!("{line}: {why}"),
            None => line.clone(),
        });
        if began.elapsed() >= timeout {
            let mut failure = Failure::new(
                Exit::TimedOut,
                format!("not empty after {}: {line}", short(timeout.as_secs())),
            );
            if leaderless {
                failure = failure.detail(why.concat());
            } else {
                failure = reasons(&follow.view, &left).into_iter().fold(failure, Failure::detail);
            }
            return Err(failure.help("it goes on; `reeve get instances -A -o wide` shows what is left"));
        }
        tokio::select! {
            changed = follow.changed() => changed?,
            _ = tick.tick() => {}
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::new(Exit::Failed, "no longer waiting; what was written stays and goes on"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::names::Namespace;
    use schemas::records::{Counts, SchemaVersion};

    use super::*;

    fn status(conditions: &[(ConditionType, ConditionStatus, &str)]) -> ServiceStatus {
        let conditions = conditions.iter().map(|(kind, status, reason)| Condition {
            kind: *kind,
            status: *status,
            reason: (*reason).to_owned(),
            message: "because".to_owned(),
            since: None,
        });
        ServiceStatus {
            schema_version: SchemaVersion::default(),
            observed_revision: 5,
            generation: Some(1),
            uid: None,
            counts: Counts {
                desired: 3,
                assigned: 3,
                running: 3,
                ready: 2,
                updated: 3,
            },
            conditions: conditions.collect(),
            problems: Vec::new(),
            refusals: Vec::new(),
            images: Vec::new(),
        }
    }

    #[test]
    fn a_service_is_done_only_when_it_is_ready_and_nothing_progresses() {
        use ConditionStatus::{False, True};
        use ConditionType::{Accepted, Progressing, Ready, Scheduled};
        let key = crate::view::service_key(&Namespace::default(), &"web".parse().expect("a name"));
        let exit = |conditions: &[(ConditionType, ConditionStatus, &str)]| match service(&key, &status(conditions)) {
            Far::Done(_) => Exit::Done,
            Far::Waiting(_) => Exit::TimedOut,
            Far::NoNode(failure) | Far::Failed(failure) => failure.exit,
        };
        assert_eq!(
            exit(&[(Ready, True, "Ready"), (Progressing, False, "Complete")]),
            Exit::Done
        );
        assert_eq!(
            exit(&[(Ready, True, "Ready"), (Progressing, True, "Changing")]),
            Exit::TimedOut
        );
        assert_eq!(
            exit(&[(Ready, False, "Starting"), (Progressing, False, "Complete")]),
            Exit::TimedOut
        );
        assert_eq!(
            exit(&[(Ready, False, "x"), (Progressing, False, "ImageNotFound")]),
            Exit::Failed
        );
        assert_eq!(
            exit(&[(Scheduled, False, "NoNodeFits"), (Progressing, True, "x")]),
            Exit::Unschedulable
        );
        assert_eq!(exit(&[(Accepted, False, "Invalid"), (Ready, True, "x")]), Exit::Invalid);
    }

    #[test]
    fn a_service_with_a_new_file_or_secret_is_done_only_with_a_newer_generation() {
        let key = crate::view::service_key(&Namespace::default(), &"web".parse().expect("a name"));
        let ready = [(ConditionType::Ready, ConditionStatus::True, "AllReady")];
        let done = |generation: Option<u64>, before: Option<u64>| {
            let mut view = View::default();
            let mut status = status(&ready);
            status.generation = generation;
            view.services.insert(key.clone(), Ok(status));
            let goal = Goal::Renewed {
                key: key.clone(),
                before,
            };
            matches!(far(&view, &goal), Far::Done(_))
        };
        assert!(!done(Some(1), Some(1)), "that is the status from before");
        assert!(done(Some(2), Some(1)));
        assert!(!done(None, None));
        assert!(done(Some(1), None));
    }
}
