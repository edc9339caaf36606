//! Log lines of the long-running verbs, on standard error: for people, or one JSON object per line. `REEVE_LOG` chooses.

use std::collections::HashMap;
use std::fmt;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::args::LogFormat;
use crate::failure::{Failure, printable};
use crate::output::Tone;

/// Crates whose lines are shown at a level given without a name. Of others only errors are, unless asked for by name:
/// `debug` is about Reeve, `h2=debug` about HTTP/2.
const OURS: &[&str] = &[
    "reeve",
    "controller",
    "agent",
    "membership",
    "network",
    "runtime",
    "planner",
    "schemas",
];

fn is_level(text: &str) -> bool {
    ["off", "error", "warn", "info", "debug", "trace"].contains(&text.to_ascii_lowercase().as_str())
}

/// A word that is neither a level nor `NAME=LEVEL`: a typing error, not the name of a crate to be shown in full.
fn mistyped(told: &str) -> Option<&str> {
    let mut parts = told.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.find(|part| !is_level(part) && !part.contains('='))
}

/// The filter that a person's words stand for.
fn directives(told: &str) -> String {
    let mut all = vec!["error".to_owned()];
    for part in told.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        if is_level(part) {
            all.extend(OURS.iter().map(|name| format!("{name}={part}")));
        } else {
            all.push(part.to_owned());
        }
    }
    // `off` is meant for all.
    if told.trim().eq_ignore_ascii_case("off") {
        "off".to_owned()
    } else {
        all.join(",")
    }
}

/// Starts logging, once per process.
pub fn start(filter: &str, format: LogFormat) -> Result<(), Failure> {
    if let Some(word) = mistyped(filter) {
        return Err(Failure::usage(format!("`{word}` is no log level"))
            .help("write off, error, warn, info, debug or trace, or one of them for a part: `agent=debug,info`"));
    }
    let filter = EnvFilter::try_new(directives(filter)).map_err(|error| {
        Failure::usage(format!("`{filter}` is not a log filter"))
            .because(&error)
            .help("write a level such as `info`, or `agent=debug,info`")
    })?;
    let terminal = std::io::stderr().is_terminal();
    let color = terminal && anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(color);
    // The journal stamps each line itself.
    let stamped = std::env::var_os("JOURNAL_STREAM").is_none();
    match format {
        LogFormat::Human => builder
            .event_format(Human {
                stamped,
                terminal,
                told: Mutex::default(),
            })
            .init(),
        LogFormat::Json => builder.event_format(Json).init(),
    }
    Ok(())
}

/// One short line for people: `14:03:07 warn the engine does not answer yet: connection refused  remedy="..."`.
/// Under journald it begins with the priority (`<4>`) that the journal files it under, and has no time.
struct Human {
    stamped: bool,
    terminal: bool,
    told: Mutex<Told>,
}

/// How long the same line is not written again; the next one then says how often it came meanwhile.
const QUIET: Duration = Duration::from_secs(10);
/// Fields that differ between lines that are the same for a person.
const VARYING: &[&str] = &["delay", "attempt", "took", "revision", "lost"];
/// Lines remembered for that.
const REMEMBERED: usize = 64;

/// Warnings and errors written lately. Something that is tried twice a second must not bury what else is said.
#[derive(Default)]
struct Told(HashMap<String, (Instant, usize)>);

impl Told {
    /// How often the line came since it was last written; None while it is not written again.
    fn again(&mut self, line: &str, now: Instant) -> Option<usize> {
        if let Some((at, more)) = self.0.get_mut(line) {
            if now.duration_since(*at) < QUIET {
                *more += 1;
                return None;
            }
            let came = *more;
            (*at, *more) = (now, 0);
            return Some(came);
        }
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(line.to_owned(), (now, 0));
        Some(0)
    }
}

/// What a gRPC client says of a failure, without its own scaffolding: the innermost message of `code: '..', message:
/// "..", source: ..`.
fn plain(text: &str) -> String {
    let Some((before, rest)) = text.split_once("code: '") else {
        return text.to_owned();
    };
    let last = rest
        .rsplit("message: \"")
        .next()
        .and_then(|last| last.split('"').next());
    match last.filter(|last| !last.is_empty() && rest.contains("message: \"")) {
        Some(last) => format!("{before}{last}"),
        None => text.to_owned(),
    }
}

impl<S, N> FormatEvent<S, N> for Human
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        let (word, priority, tone) = match level {
            Level::ERROR => ("error", 3, Tone::Bad),
            Level::WARN => ("warn ", 4, Tone::Busy),
            Level::INFO => ("info ", 6, Tone::Good),
            Level::DEBUG => ("debug", 7, Tone::Plain),
            _ => ("trace", 7, Tone::Plain),
        };
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let Fields(mut fields) = fields;
        let mut take = |name: &str| {
            fields
                .remove(name)
                .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        let said = take("message").unwrap_or_default();
        let cause: String = take("error")
            .or_else(|| take("hold"))
            .into_iter()
            .chain(take("cause"))
            .map(|cause| format!(": {}", plain(&cause)))
            .collect();
        let remedy = take("remedy")
            .filter(|text| text != "None")
            .map(|text| format!("; {text}"))
            .unwrap_or_default();
        let line = printable(&format!("{said}{cause}{remedy}"));
        let mut more = 0;
        if level <= Level::WARN {
            // A panic while it was held leaves nothing half done.
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let about = fields.iter().filter(|(name, _)| !VARYING.contains(&name.as_str()));
            let same = about.fold(line.clone(), |text, (name, value)| format!("{text} {name}={value}"));
            match told.again(&same, Instant::now()) {
                Some(came) => more = came,
                None => return Ok(()),
            }
        }
        if self.stamped {
            let now = jiff::Timestamp::now();
            // A person at a terminal knows the day, and lives in a time zone; a file is read elsewhere and later.
            if self.terminal {
                let now = now.to_zoned(jiff::tz::TimeZone::system());
                write!(writer, "{} ", now.strftime("%H:%M:%S"))?;
            } else {
                write!(writer, "{} ", now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))?;
            }
        } else {
            write!(writer, "<{priority}>")?;
        }
        let style = if writer.has_ansi_escapes() {
            tone.style()
        } else {
            Tone::Plain.style()
        };
        write!(writer, "{style}{word}{style:#} ")?;
        let target = event.metadata().target();
        if !OURS.iter().any(|name| target.split("::").next() == Some(name)) || level > Level::INFO {
            write!(writer, "{target}: ")?;
        }
        write!(writer, "{line}")?;
        for (name, value) in &fields {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            write!(writer, " {name}={}", printable(&value))?;
        }
        if more > 0 {
            write!(writer, " ({more} more of these since)")?;
        }
        writeln!(writer)
    }
}

/// One JSON object per line: time, level, target, message, and the fields of the event.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let Fields(mut line) = fields;
        line.insert("time".to_owned(), json!(jiff::Timestamp::now().to_string()));
        line.insert(
            "level".to_owned(),
            json!(event.metadata().level().as_str().to_ascii_lowercase()),
        );
        line.insert("target".to_owned(), json!(event.metadata().target()));
        writeln!(writer, "{}", Value::Object(line))
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, json!(format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, json!(value));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, json!(value));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, json!(value));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, json!(value));
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, json!(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_about_our_own_lines_and_others_are_asked_for_by_name() {
        assert_eq!(
            directives("debug,h2=info"),
            "error,reeve=debug,controller=debug,agent=debug,membership=debug,network=debug,runtime=debug,planner=debug,schemas=debug,h2=info"
        );
        assert_eq!(directives("off"), "off");
        assert_eq!(directives("agent=trace"), "error,agent=trace");
        assert_eq!(mistyped("info,agnet"), Some("agnet"));
        assert_eq!(mistyped("agent=debug, warn"), None);
    }

    #[test]
    fn what_repeats_is_written_now_and_then_and_says_how_often_it_came() {
        let mut told = Told::default();
        let now = Instant::now();
        assert_eq!(told.again("a", now), Some(0));
        assert_eq!(told.again("a", now), None);
        assert_eq!(told.again("b", now), Some(0));
        assert_eq!(told.again("a", now + QUIET), Some(1));
        assert_eq!(told.again("a", now + QUIET), None);
    }

    #[test]
    fn a_clients_scaffolding_is_left_out_of_what_people_read() {
        let said = "cannot read: code: 'The service is currently unavailable', message: \"tcp connect error\", source: \
                    Os { code: 111, kind: ConnectionRefused, message: \"Connection refused\" }";
        assert_eq!(plain(said), "cannot read: Connection refused");
        assert_eq!(plain("connection refused"), "connection refused");
    }
}
