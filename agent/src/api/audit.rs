//! The record of what people ran in containers: `exec.jsonl` in the data directory, a line before each act and one after it,
//! on disk before the act begins. Who, what, when, how it ended; never what was typed or printed, nor any variable. Bounded:
//! 4 MiB a file, five files. An act that cannot be recorded is not begun.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use schemas::names::NodeName;
use schemas::records::{Event, EventType, SchemaVersion};
use serde::Serialize;
use tokio::sync::mpsc;

use super::Caller;
use super::ask::Named;
use crate::engine::clean;
use crate::events_out::Told;

/// The file; older ones are `exec.1.jsonl` to `exec.4.jsonl`.
const NAME: &str = "exec";
const MAX_BYTES: u64 = 4 << 20;
const OLD: u32 = 4;

/// Records acts.
#[derive(Clone)]
pub struct Audit {
    dir: PathBuf,
    node: NodeName,
    events: mpsc::Sender<Told>,
    /// Whoever writes holds it.
    turn: Arc<Mutex<()>>,
    count: Arc<AtomicU64>,
}

/// What is begun.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Begun {
    pub act: &'static str,
    /// None: on the node itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<Named>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// The command of the store that it is, by namespace and name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
    /// As proven by the connection.
    pub caller: String,
    /// As the caller calls himself.
    pub by: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub terminal: bool,
}

impl Begun {
    pub fn new(act: &'static str, instance: &Named, container: &str, caller: &Caller, by: &str) -> Self {
        Self {
            act,
            instance: Some(instance.clone()),
            container: container.to_owned(),
            named: None,
            caller: caller.to_string(),
            by: clean(by, 128),
            command: Vec::new(),
            port: None,
            path: None,
            terminal: false,
        }
    }

    /// On the node itself.
    pub fn on_node(act: &'static str, command: &[String], caller: &Caller, by: &str) -> Self {
        Self {
            act,
            instance: None,
            container: String::new(),
            named: None,
            caller: caller.to_string(),
            by: clean(by, 128),
            command: command.to_vec(),
            port: None,
            path: None,
            terminal: false,
        }
    }

    /// For an event: the first word only, for the others may be secret.
    fn title(&self) -> String {
        if let Some(named) = &self.named {
            return format!("the command `{}`", clean(named, 130));
        }
        match (self.command.first(), self.port) {
            (Some(first), _) => format!("`{}`", clean(first, 64)),
            (None, Some(port)) => format!("a connection to port {port}"),
            (None, None) => self.act.to_owned(),
        }
    }
}

/// A line of the file.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    time: String,
    id: &'a str,
    phase: &'static str,
    node: &'a NodeName,
    #[serde(flatten)]
    begun: &'a Begun,
    /// None while it runs, and where the caller left before the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

impl Audit {
    pub fn new(dir: PathBuf, node: NodeName, events: mpsc::Sender<Told>) -> Self {
        Self {
            dir,
            node,
            events,
            turn: Arc::default(),
            count: Arc::default(),
        }
    }

    /// Records that an act begins; on return it is on disk. The end is recorded when the answer is dropped.
    pub fn begin(&self, begun: Begun) -> io::Result<Running> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{count}", jiff::Timestamp::now().as_millisecond());
        self.write(&id, "began", &begun, None, None)?;
        let said = format!("{} ({}) begins {}", begun.by, begun.caller, begun.title());
        self.tell(&begun, "ExecBegan", said);
        Ok(Running {
            audit: self.clone(),
            id,
            begun,
            since: Instant::now(),
            code: None,
        })
    }

    fn write(
        &self,
        id: &str,
        phase: &'static str,
        begun: &Begun,
        exit_code: Option<i64>,
        seconds: Option<f64>,
    ) -> io::Result<()> {
        let line = Line {
            time: now(),
            id,
            phase,
            node: &self.node,
            begun,
            exit_code,
            seconds,
        };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path(0);
        if std::fs::metadata(&path).is_ok_and(|file| file.len() + bytes.len() as u64 > MAX_BYTES) {
            for old in (0..OLD).rev() {
                match std::fs::rename(self.path(old), self.path(old + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        let mut file = File::options().create(true).append(true).mode(0o600).open(&path)?;
        file.write_all(&bytes)?;
        file.sync_all()
    }

    fn path(&self, old: u32) -> PathBuf {
        match old {
            0 => self.dir.join(format!("{NAME}.jsonl")),
            old => self.dir.join(format!("{NAME}.{old}.jsonl")),
        }
    }

    fn tell(&self, begun: &Begun, reason: &str, message: String) {
        let (namespace, about) = match &begun.instance {
            Some(instance) => (
                instance.namespace.to_string(),
                format!("{}/{instance}", instance.namespace),
            ),
            None => ("_".to_owned(), format!("_/node/{}", self.node)),
        };
        let event = Event {
            schema_version: SchemaVersion::default(),
            time: now(),
            kind: EventType::Normal,
            reason: reason.to_owned(),
            message,
            about,
            node: Some(self.node.clone()),
            by: format!("agent/{}", self.node),
        };
        // A full queue drops events; the file has it.
        let _ = self.events.try_send((namespace, event));
    }
}

/// An act under way; its end is recorded however it ends.
pub struct Running {
    audit: Audit,
    id: String,
    begun: Begun,
    since: Instant,
    code: Option<i64>,
}

impl Running {
    /// It ended with this code.
    pub fn ended(&mut self, code: i64) {
        self.code = Some(code);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let seconds = self.since.elapsed().as_secs_f64();
        let Self {
            audit,
            id,
            begun,
            since: _,
            code,
        } = self;
        if let Err(error) = audit.write(id, "ended", begun, *code, Some(seconds)) {
            tracing::error!(%error, "the end of what somebody ran in a container is not recorded");
        }
        let how = match code {
            Some(code) => format!("ended with code {code}"),
            None => "was left by who began it".to_owned(),
        };
        let said = format!("{} of {} {how}", begun.title(), begun.by);
        audit.tell(begun, "ExecEnded", said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(argument: String) -> Begun {
        let instance = Named {
            namespace: Default::default(),
            workload: "web".parse().unwrap(),
            slot: "1".parse().unwrap(),
        };
        Begun {
            command: vec!["sh".to_owned(), argument],
            ..Begun::new("exec", &instance, "abc", &Caller::Local { uid: 0 }, "me@\u{1b}host")
        }
    }

    #[test]
    fn each_act_is_two_lines_and_two_events_that_tell_no_argument() {
        let dir = tempfile::tempdir().unwrap();
        let (events, mut told) = mpsc::channel(8);
        let audit = Audit::new(dir.path().to_owned(), "n1".parse().unwrap(), events);
        let mut running = audit.begin(begun("secret".to_owned())).unwrap();
        running.ended(3);
        drop(running);
        let text = std::fs::read_to_string(dir.path().join("exec.jsonl")).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (&lines[0]["phase"], &lines[1]["phase"]),
            (&"began".into(), &"ended".into())
        );
        assert_eq!((&lines[0]["id"], &lines[1]["exitCode"]), (&lines[1]["id"], &3.into()));
        assert_eq!(lines[0]["by"], "me@ host");
        for reason in ["ExecBegan", "ExecEnded"] {
            let (namespace, event) = told.try_recv().unwrap();
            assert_eq!((namespace.as_str(), event.reason.as_str()), ("default", reason));
            assert_eq!(event.about, "default/web.1");
            assert!(!event.message.contains("secret"), "{}", event.message);
        }
    }

    #[test]
    fn the_files_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (events, _told) = mpsc::channel(1);
        let audit = Audit::new(dir.path().to_owned(), "n1".parse().unwrap(), events);
        for _ in 0..30 {
            drop(audit.begin(begun("x".repeat(512 << 10))).unwrap());
        }
        let files = std::fs::read_dir(dir.path()).unwrap().flatten();
        let sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), 5);
        assert!(sizes.iter().all(|size| *size <= MAX_BYTES), "{sizes:?}");
    }

    #[test]
    fn what_cannot_be_recorded_is_not_begun() {
        let (events, mut told) = mpsc::channel(1);
        let audit = Audit::new("/nonexistent/dir".into(), "n1".parse().unwrap(), events);
        assert!(audit.begin(begun(String::new())).is_err());
        assert!(told.try_recv().is_err());
    }
}
