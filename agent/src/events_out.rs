//! Events for people, derived from two reports in a row: what started, ended, was restarted, became ready or fails, and
//! why. Nothing decides from them. They are written under leases that end, at a bounded rate; what is over it is dropped.

use std::collections::BTreeMap;

use planner::node::InstanceKey;
use schemas::names::NodeName;
use schemas::records::{Event, EventType, Phase, Report, ReportedInstance, SchemaVersion};

/// Something to tell people: the namespace it is told in, and the event.
pub type Told = (String, Event);

/// What has changed between two reports, in words.
#[must_use]
pub fn between(old: Option<&Report>, new: &Report, time: &str) -> Vec<Told> {
    let before: BTreeMap<InstanceKey, &ReportedInstance> = old
        .iter()
        .flat_map(|report| &report.instances)
        .map(|line| (InstanceKey::reported(line), line))
        .collect();
    let mut told = Vec::new();
    // The first report of a process tells of nothing that happened.
    if old.is_none() {
        return told;
    }
    for line in &new.instances {
        let key = InstanceKey::reported(line);
        let was = before.get(&key).copied();
        let mut say = |kind: EventType, reason: &str, message: String| {
            told.push(tell(&new.node, &key, kind, reason, message, time))
        };
        let same_container = was.is_some_and(|was| was.container == line.container);
        if line.phase == Phase::Running
            && !(same_container && was.is_some_and(|was| was.phase == Phase::Running))
            && line.container.is_some()
        {
            let reason = if same_container && line.restarts > was.map_or(0, |was| was.restarts) {
                "Restarted"
            } else {
                "Started"
            };
            say(
                EventType::Normal,
                reason,
                format!(
                    "container {} runs generation {}",
                    line.container.as_deref().unwrap_or("-"),
                    line.n
                ),
            );
        }
        if let Some(was) = was {
            let ended = matches!(line.phase, Phase::BackOff | Phase::Stopped) && was.phase == Phase::Running;
            if ended
                || (same_container
                    && line.restarts > was.restarts
                    && was.phase == Phase::Running
                    && line.phase == Phase::Running)
            {
                let code = line
                    .exit_code
                    .map_or_else(String::new, |code| format!(" with code {code}"));
                say(EventType::Warning, "Died", format!("the container ended{code}"));
            }
            if was.phase != line.phase
                && matches!(was.phase, Phase::Pulling { .. })
                && !matches!(line.phase, Phase::Pulling { .. } | Phase::Failed)
            {
                say(
                    EventType::Normal,
                    "Pulled",
                    format!("the image of generation {} is here", line.n),
                );
            }
        }
        if line.ready && !was.is_some_and(|was| was.ready) {
            say(
                EventType::Normal,
                "Ready",
                format!("it is ready, at generation {}", line.n),
            );
        }
        if let Some(failing) = &line.failing
            && was
                .and_then(|was| was.failing.as_ref())
                .is_none_or(|was| (was.reason, was.n) != (failing.reason, failing.n))
        {
            say(
                EventType::Warning,
                &format!("{:?}", failing.reason),
                failing.message.clone(),
            );
        }
    }
    for (key, was) in &before {
        if !new.instances.iter().any(|line| InstanceKey::reported(line) == *key) {
            told.push(tell(
                &new.node,
                key,
                EventType::Normal,
                "Removed",
                format!("generation {} no longer runs here", was.n),
                time,
            ));
        }
    }
    let conditions = old.map(|old| old.conditions.as_slice()).unwrap_or_default();
    for condition in new
        .conditions
        .iter()
        .filter(|condition| !conditions.iter().any(|was| was.reason == condition.reason))
    {
        let event = Event {
            schema_version: SchemaVersion::default(),
            time: time.to_owned(),
            kind: EventType::Warning,
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            about: format!("_/node/{}", new.node),
            node: Some(new.node.clone()),
            by: format!("agent/{}", new.node),
        };
        told.push(("_".to_owned(), event));
    }
    told
}

fn tell(node: &NodeName, key: &InstanceKey, kind: EventType, reason: &str, message: String, time: &str) -> Told {
    let event = Event {
        schema_version: SchemaVersion::default(),
        time: time.to_owned(),
        kind,
        reason: reason.to_owned(),
        message,
        about: key.to_string(),
        node: Some(node.clone()),
        by: format!("agent/{node}"),
    };
    (key.namespace.to_string(), event)
}

/// A bucket of tokens: so many at once, so many a second on average.
#[derive(Debug)]
pub struct Bucket {
    tokens: f64,
    most: f64,
    per_second: f64,
    last_ms: u64,
}

impl Bucket {
    #[must_use]
    pub fn new(most: u32, per_second: u32, now_ms: u64) -> Self {
        Self {
            tokens: f64::from(most),
            most: f64::from(most),
            per_second: f64::from(per_second),
            last_ms: now_ms,
        }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let seconds = now_ms.saturating_sub(self.last_ms) as f64 / 1_000.0;
        self.last_ms = now_ms;
        self.tokens = (self.tokens + seconds * self.per_second).min(self.most);
        let granted = self.tokens >= 1.0;
        if granted {
            self.tokens -= 1.0;
        }
        granted
    }
}
