//! What people and machines see on standard output: tables without borders, documents, colours. Every verb prints through
//! [`print`], which ends the process quietly when the reader has gone (`reeve get all | head`).

use std::io::{IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use schemas::problem::Look;
use serde_json::Value;

use crate::failure::printable;

/// What is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    Json,
    Yaml,
    /// One `kind/name` per line.
    Name,
}

impl Format {
    /// Whether a program reads it.
    pub fn is_for_machines(self) -> bool {
        match self {
            Self::Table | Self::Wide => false,
            Self::Json | Self::Yaml | Self::Name => true,
        }
    }
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On terminals, unless NO_COLOR is set.
    #[default]
    Auto,
    Always,
    Never,
}

impl Color {
    /// Sets the choice for both streams.
    pub fn choose(self) {
        match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }
}

/// Writes to standard output.
pub fn print(text: &str) {
    let mut out = anstream::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        // Whoever read it has gone: there is no one left to tell.
        std::process::exit(0);
    }
}

/// Writes to standard error; what cannot be said is not said.
pub fn complain(text: &str) {
    let mut err = anstream::stderr().lock();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// How diagnostics are painted on standard error.
pub fn look() -> Look {
    let color = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    Look { color, width: width() }
}

/// Columns of the terminal: COLUMNS, else as the terminal says, else 80; without bounds where standard output is a file.
pub fn width() -> usize {
    let told = std::env::var("COLUMNS")
        .ok()
        .and_then(|text| text.parse::<usize>().ok());
    let asked = || {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
        (size.ws_col > 0).then_some(usize::from(size.ws_col))
    };
    told.or_else(asked).unwrap_or(80).clamp(20, 1000)
}

/// Whether lines may be rewritten.
pub fn on_terminal() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// Whether a person can be asked.
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// How a cell is meant; colour never carries meaning alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    Good,
    Busy,
    Bad,
}

impl Tone {
    pub fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Busy => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default(),
        }
    }
}

/// One cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    pub text: String,
    pub tone: Tone,
}

impl Cell {
    pub fn new(text: impl ToString, tone: Tone) -> Self {
        let text = printable(&text.to_string());
        // An empty cell would shift what a person reads with `awk`.
        Self {
            text: if text.is_empty() { "-".to_owned() } else { text },
            tone,
        }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// Sentences in a table are not squeezed into fewer columns than these.
const MIN_WRAPPED: usize = 24;

/// A table as kubectl prints them: a head, columns three spaces apart, no borders. The last column is cut at the
/// terminal's width.
#[derive(Clone, Debug, Default)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    /// Columns are at least so wide: what was printed before, when following.
    widths: Vec<usize>,
    /// Whether the last column goes on in further lines where it would be cut.
    wraps: bool,
}

impl Table {
    pub fn new(head: &[&'static str]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
            widths: head.iter().map(|text| text.len()).collect(),
            wraps: false,
        }
    }

    /// A table whose last column is sentences: they are not cut, they go on in further lines.
    pub fn of_sentences(head: &[&'static str]) -> Self {
        Self {
            wraps: true,
            ..Self::new(head)
        }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        for (width, cell) in self.widths.iter_mut().zip(&cells) {
            *width = (*width).max(cell.text.chars().count());
        }
        self.rows.push(cells);
    }

    /// Where a column stands.
    pub fn column(&self, head: &str) -> Option<usize> {
        self.head.iter().position(|text| *text == head)
    }

    /// The head and all rows. `limit` is the terminal's width; None where nothing is cut.
    pub fn render(&self, limit: Option<usize>) -> String {
        let head = self
            .head
            .iter()
            .map(|text| Cell {
                text: (*text).to_owned(),
                tone: Tone::Plain,
            })
            .collect::<Vec<_>>();
        let mut text = self.line(&head, limit);
        for row in &self.rows {
            text.push_str(&self.line(row, limit));
        }
        text
    }

    /// The lines of single rows under a head printed before; the columns never get narrower.
    pub fn more(&mut self, cells: Vec<Cell>, limit: Option<usize>) -> String {
        for (width, cell) in self.widths.iter_mut().zip(&cells) {
            *width = (*width).max(cell.text.chars().count());
        }
        self.line(&cells, limit)
    }

    fn line(&self, cells: &[Cell], limit: Option<usize>) -> String {
        let mut line = String::new();
        let mut used = 0;
        let last = cells.len().saturating_sub(1);
        for (column, (cell, width)) in cells.iter().zip(&self.widths).enumerate() {
            let room = limit.map_or(usize::MAX, |limit| limit.saturating_sub(used));
            let style = cell.tone.style();
            if self.wraps && column == last && room != usize::MAX {
                let lines = wrap(&cell.text, room.max(MIN_WRAPPED));
                let gap = format!("\n{}", " ".repeat(used));
                line.push_str(&format!("{style}{}{style:#}", lines.join(&gap)));
                break;
            }
            let text = cut(&cell.text, room.max(1));
            line.push_str(&format!("{style}{text}{style:#}"));
            used += width + 3;
            if column < last {
                let pad = width.saturating_sub(cell.text.chars().count()) + 3;
                line.push_str(&" ".repeat(pad));
            }
            if limit.is_some_and(|limit| used >= limit) {
                break;
            }
        }
        format!("{}\n", line.trim_end())
    }
}

/// Words in lines of at most `width` characters. What has no space, such as a path or a digest, is not torn.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let long = word.chars().count();
        if used > 0 && used + 1 + long > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += long;
    }
    lines.push(line);
    lines
}

/// The width tables are cut at: none where a program reads them.
pub fn limit() -> Option<usize> {
    (on_terminal() || std::env::var_os("COLUMNS").is_some()).then(width)
}

/// As [`limit`]; a wide table is never cut, for that is why one asks for it.
pub fn limit_of(wide: bool) -> Option<usize> {
    limit().filter(|_| !wide)
}

/// At most `width` characters, with an ellipsis where something is left out.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Values as JSON: one as itself, a list as a list.
pub fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A value as YAML.
pub fn yaml(value: &Value) -> String {
    schemas::write::yaml_value(value).expect("JSON values have string keys, which YAML can say")
}

/// `3` and `instance` as `3 instances`.
pub fn count(number: usize, word: &str) -> String {
    if number == 1 {
        format!("1 {word}")
    } else {
        format!("{number} {word}s")
    }
}

/// How long ago an RFC 3339 time was, on this machine's clock: `3m`. For people only.
pub fn ago(since: &str) -> Option<String> {
    let since: jiff::Timestamp = since.parse().ok()?;
    let seconds = (jiff::Timestamp::now().as_second() - since.as_second()).max(0);
    Some(short(u64::try_from(seconds).unwrap_or(0)))
}

/// Seconds with one or two units: `45s`, `3m`, `2h5m`, `4d`.
pub fn short(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Asks a yes or no on the terminal; no is what anything else than `y` or `yes` means.
pub fn ask(question: &str) -> bool {
    complain(&format!("{question} [y/N] "));
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    if matches!(read, Ok(0)) {
        complain("\n");
    }
    read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_its_last_column_is_cut_at_the_width() {
        let mut table = Table::new(&["NAME", "STATUS"]);
        table.row(vec!["web".into(), "a long sentence about it".into()]);
        table.row(vec!["database".into(), "".into()]);
        assert_eq!(
            table.render(Some(20)),
            "NAME       STATUS\nweb        a long s…\ndatabase   -\n"
        );
        assert_eq!(
            table.render(None).lines().nth(1),
            Some("web        a long sentence about it")
        );
    }

    #[test]
    fn sentences_in_a_table_go_on_under_themselves() {
        let mut table = Table::of_sentences(&["NAME", "MESSAGE"]);
        table.row(vec!["web".into(), "one two three four five six seven".into()]);
        assert_eq!(
            table.render(Some(31)),
            "NAME   MESSAGE\nweb    one two three four five\n       six seven\n"
        );
        assert_eq!(
            wrap("a  long-word-that-is-not-torn b", 6),
            ["a ", "long-word-that-is-not-torn", "b"]
        );
    }

    #[test]
    fn times_are_short() {
        assert_eq!(short(119), "119s");
        assert_eq!(short(3600), "60m");
        assert_eq!(short(7500), "2h5m");
        assert_eq!(short(200_000), "2d");
        assert_eq!(ago("not a time"), None);
    }
}
