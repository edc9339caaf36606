//! One thing that was looked at: how it is, what was found, and what to do about it. `reeve install` and `reeve doctor`
//! show lists of them, in 80 columns, and as JSON.

use serde::Serialize;

use crate::failure::printable;
use crate::output::{self, Tone};

/// How it is. The words are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    Ok,
    Warn,
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    pub level: Level,
    /// What was looked at, in a word or two.
    pub check: String,
    pub found: String,
    /// What to do; there always is something where it is not ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Line {
    pub fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            check: check.into(),
            found: printable(&found.into()),
            fix: None,
        }
    }

    pub fn warn(check: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            fix: Some(printable(&fix.into())),
            ..Self::ok(check, found)
        }
    }

    pub fn bad(check: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            level: Level::Bad,
            ..Self::warn(check, found, fix)
        }
    }
}

/// How many lines are of this level.
pub fn count(lines: &[Line], level: Level) -> usize {
    lines.iter().filter(|line| line.level == level).count()
}

/// The lines as people read them: each fix under what it is for.
pub fn render(lines: &[Line], limit: Option<usize>) -> String {
    let wide = lines.iter().map(|line| line.check.chars().count()).max().unwrap_or(0);
    let begins = 4 + 2 + wide + 2;
    let room = limit.map_or(usize::MAX, |limit| limit.saturating_sub(begins).max(24));
    let gap = format!("\n{}", " ".repeat(begins));
    let mut text = String::new();
    for line in lines {
        let (word, tone) = match line.level {
            Level::Ok => ("ok", Tone::Good),
            Level::Warn => ("warn", Tone::Busy),
            Level::Bad => ("bad", Tone::Bad),
        };
        let style = tone.style();
        let mut sentences = output::wrap(&line.found, room);
        if let Some(fix) = &line.fix {
            sentences.extend(output::wrap(&format!("fix: {fix}"), room));
        }
        text.push_str(&format!(
            "{style}{word:<4}{style:#}  {:<wide$}  {}\n",
            line.check,
            sentences.join(&gap)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_and_each_fix_stands_under_what_it_is_for() {
        let lines = [
            Line::ok("docker", "20.10.24"),
            Line::bad("port 2380", "it is taken", "end what listens there, please do"),
        ];
        assert_eq!(
            anstream::adapter::strip_str(&render(&lines, Some(41))).to_string(),
            "ok    docker     20.10.24\nbad   port 2380  it is taken\n                 fix: end what listens\n                 there, please do\n"
        );
        assert_eq!((count(&lines, Level::Bad), count(&lines, Level::Warn)), (1, 0));
        assert!(Level::Ok < Level::Warn && Level::Warn < Level::Bad);
    }
}
