//! The one error of the binary: every verb returns it, `main` prints it and ends with its exit code. It promises one
//! clear sentence (the act and the object), each cause once, and a `help:` line where a person can do something.

use std::error::Error;
use std::fmt::Write as _;
use std::io::IsTerminal as _;

use runtime::{StoreError, StoreErrorKind};
use schemas::problem::{Look, Problems};
use serde::Serialize;
use serde_json::json;

use crate::output;

/// How the process ends. The numbers are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All was done.
    Done = 0,
    /// `plan --exit-code` found differences.
    Differs = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The store cannot be reached.
    Unreachable = 3,
    /// Something else was written meanwhile, or a condition does not hold.
    Conflict = 4,
    /// It was tried and failed.
    Failed = 6,
    /// No node fits.
    Unschedulable = 7,
    /// A document is invalid.
    Invalid = 9,
    /// The time given was too short.
    TimedOut = 124,
}

impl Exit {
    /// A stable word for machines.
    const fn word(self) -> &'static str {
        match self {
            Self::Done => "Done",
            Self::Differs => "Differs",
            Self::Usage => "Usage",
            Self::Unreachable => "Unreachable",
            Self::Conflict => "Conflict",
            Self::Failed => "Failed",
            Self::Unschedulable => "Unschedulable",
            Self::Invalid => "Invalid",
            Self::TimedOut => "TimedOut",
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a verb did not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    /// One sentence: the act and the object.
    pub message: String,
    /// What led to it, outermost first; each is said once.
    causes: Vec<String>,
    /// Further lines: log lines, refusals.
    details: Vec<String>,
    /// What to do.
    help: Option<String>,
    problems: Option<Box<Problems>>,
    /// Whether the store does not let this user do it.
    pub denied: bool,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            causes: Vec::new(),
            details: Vec::new(),
            help: None,
            problems: None,
            denied: false,
        }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds an error and its sources; a text that the one before it contains is not repeated.
    #[must_use]
    pub fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = one_line(&error.to_string());
            let said = self.causes.last().unwrap_or(&self.message).contains(&text);
            if !said && self.causes.len() < 6 {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// Whether a cause names one of these words.
    pub fn is_caused_by(&self, words: &[&str]) -> bool {
        self.causes
            .iter()
            .any(|cause| words.iter().any(|word| cause.contains(word)))
    }

    /// The message with its causes, on one line.
    pub fn sentence(&self) -> String {
        let all: Vec<&str> = std::iter::once(&self.message)
            .chain(&self.causes)
            .map(String::as_str)
            .collect();
        all.join(": ")
    }

    /// What to do, where it says so.
    pub fn remedy(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// Documents that were not admitted.
    pub fn invalid(problems: Problems) -> Self {
        let mut failure = Self::new(Exit::Invalid, "the documents are not valid; nothing was written");
        failure.problems = Some(Box::new(problems));
        failure
    }

    /// For people.
    pub fn render(&self, look: Look) -> String {
        let (red, cyan) = (
            anstyle::AnsiColor::Red.on_default().bold(),
            anstyle::AnsiColor::Cyan.on_default().bold(),
        );
        let mut text = String::new();
        if let Some(problems) = &self.problems {
            text.push_str(&problems.render(look));
            return text;
        }
        let said: String = std::iter::once(&self.message)
            .chain(&self.causes)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(": ");
        let _ = writeln!(text, "{red}error{red:#}: {}", folded(&said, "error: ".len()));
        for line in &self.details {
            let _ = writeln!(text, "  {}", printable(line));
        }
        if let Some(help) = &self.help {
            let _ = writeln!(text, "{cyan}help{cyan:#}: {}", folded(help, "help: ".len()));
        }
        text
    }

    /// For machines: one line of JSON.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Out<'a> {
            reason: &'a str,
            exit_code: u8,
            message: &'a str,
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            causes: &'a [String],
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            details: &'a [String],
            #[serde(skip_serializing_if = "Option::is_none")]
            help: Option<&'a str>,
            #[serde(flatten)]
            problems: Option<&'a Problems>,
        }
        let Self {
            exit,
            message,
            causes,
            details,
            help,
            problems,
            denied: _,
        } = self;
        let out = Out {
            reason: exit.word(),
            exit_code: *exit as u8,
            message,
            causes,
            details,
            help: help.as_deref(),
            problems: problems.as_deref(),
        };
        format!("{}\n", json!({ "error": out }))
    }
}

/// A sentence, broken between words where a terminal would break it within them. Programs get one line.
pub fn folded(text: &str, begins_at: usize) -> String {
    if !std::io::stderr().is_terminal() {
        return text.to_owned();
    }
    let room = output::width().saturating_sub(begins_at).max(20);
    output::wrap(text, room).join(&format!("\n{}", " ".repeat(begins_at)))
}

/// Text of others on one line, without control characters.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What a chain of causes ends with. A transport's layers each repeat it in their own words.
fn innermost<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

fn one_line(text: &str) -> String {
    printable(text.trim()).trim_end_matches('.').to_owned()
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match &error.kind {
            StoreErrorKind::Unreachable
            | StoreErrorKind::DeadlineExceeded
            | StoreErrorKind::Ambiguous
            | StoreErrorKind::Denied
            | StoreErrorKind::Tls
            | StoreErrorKind::NotEtcd => Exit::Unreachable,
            StoreErrorKind::TooLarge { .. } => Exit::Invalid,
            StoreErrorKind::Compacted { .. }
            | StoreErrorKind::FutureRevision
            | StoreErrorKind::NoSpace
            | StoreErrorKind::LeaseNotFound
            | StoreErrorKind::Invalid(_)
            | StoreErrorKind::Refused(_) => Exit::Failed,
        };
        let mut failure = Self::new(exit, format!("cannot {error}"));
        failure.denied = error.kind == StoreErrorKind::Denied;
        let failure = match error.source().map(innermost) {
            // What a web server's page looks like to a gRPC client tells nobody anything.
            Some(_) if error.kind == StoreErrorKind::NotEtcd => failure,
            Some(root) => failure.because(root),
            None => failure,
        };
        match error.remedy() {
            Some(remedy) => failure.help(remedy),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_each_cause_once_and_ends_with_the_remedy() {
        let source = std::io::Error::other("connection refused");
        let error = StoreError::new("reach", "http://127.0.0.1:1", StoreErrorKind::Unreachable).because(source);
        let failure = Failure::from(error);
        let text = anstream::adapter::strip_str(&failure.render(Look::default())).to_string();
        assert_eq!(text.matches("connection refused").count(), 1, "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.lines().last().is_some_and(|line| line.starts_with("help: ")),
            "{text}"
        );
        assert_eq!(failure.exit, Exit::Unreachable);
    }

    #[test]
    fn control_characters_of_others_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a [2Jb ");
    }
}
