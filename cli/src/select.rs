//! What a person picks out: kinds as they name them, `KIND/NAME`, and label selectors (`app=web,tier!=cache,!old`).
//! `get`, `describe`, `delete` and `events` call it.

use std::collections::BTreeMap;

use schemas::kinds::Kind;

use crate::failure::Failure;

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Resource(Kind),
    Instances,
    Events,
    All,
}

/// What is listed, and the names given with it: `service web db`, `service/web`.
pub fn what(kind: &str, names: &[String]) -> Result<(What, Vec<String>), Failure> {
    let (kind, inline) = match kind.split_once('/') {
        Some((kind, name)) => (kind, Some(name.to_owned())),
        None => (kind, None),
    };
    let what = match kind.to_ascii_lowercase().as_str() {
        "instances" | "instance" | "in" | "pods" | "pod" | "po" => What::Instances,
        "events" | "event" | "ev" => What::Events,
        "all" => What::All,
        _ => What::Resource(Kind::from_person(kind).map_err(|error| {
            Failure::usage(error.to_string())
                .help("list services (svc), nodes (no), configfiles (cf), instances (in), events (ev) or all")
        })?),
    };
    Ok((what, inline.into_iter().chain(names.iter().cloned()).collect()))
}

/// A conjunction of demands on labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Demand>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Demand {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

impl Selector {
    /// `k=v`, `k==v`, `k!=v`, `k in (a,b)`, `k notin (a,b)`, `k`, `!k`, with commas between them.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let refuse = |part: &str| {
            Failure::usage(format!("`{part}` is no label selector")).help(
                "write KEY=VALUE, KEY!=VALUE, KEY, !KEY, `KEY in (A,B)` or `KEY notin (A,B)`, with commas between them",
            )
        };
        let mut demands = Vec::new();
        for part in split(text) {
            let part = part.trim();
            let (left, right) = part
                .split_once('(')
                .map_or((part, None), |(left, right)| (left.trim(), Some(right)));
            let demand = if let Some(right) = right {
                let values = right.strip_suffix(')').ok_or_else(|| refuse(part))?;
                let values: Vec<String> = values.split(',').map(|value| value.trim().to_owned()).collect();
                match left.split_once(char::is_whitespace) {
                    Some((key, "in")) => Demand::In(key.to_owned(), values),
                    Some((key, "notin")) => Demand::NotIn(key.to_owned(), values),
                    _ => return Err(refuse(part)),
                }
            } else if let Some((key, value)) = part.split_once("!=") {
                Demand::NotIn(key.trim().to_owned(), vec![value.trim().to_owned()])
            } else if let Some((key, value)) = part.split_once('=') {
                let value = value.strip_prefix('=').unwrap_or(value);
                Demand::In(key.trim().to_owned(), vec![value.trim().to_owned()])
            } else if let Some(key) = part.strip_prefix('!') {
                Demand::DoesNotExist(key.trim().to_owned())
            } else {
                Demand::Exists(part.to_owned())
            };
            let (Demand::In(key, _) | Demand::NotIn(key, _) | Demand::Exists(key) | Demand::DoesNotExist(key)) =
                &demand;
            if key.is_empty() || key.contains(char::is_whitespace) {
                return Err(refuse(part));
            }
            demands.push(demand);
        }
        Ok(Self(demands))
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|demand| match demand {
            Demand::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Demand::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Demand::Exists(key) => labels.contains_key(key),
            Demand::DoesNotExist(key) => !labels.contains_key(key),
        })
    }
}

/// At commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_u32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_a_conjunction() {
        let labels = BTreeMap::from([
            ("app".to_owned(), "web".to_owned()),
            ("tier".to_owned(), "front".to_owned()),
        ]);
        for (text, fits) in [
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=web,tier!=front", false),
            ("app in (db, web),!old", true),
            ("app notin (db,web)", false),
            ("zone", false),
            ("zone!=a", true),
        ] {
            assert_eq!(
                Selector::parse(text).map(|s| s.matches(&labels)).ok(),
                Some(fits),
                "{text}"
            );
        }
        for bad in ["", "=x", "a in b(c)", "a (b)", "a b", "app in (a"] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kinds_are_found_with_and_without_a_slash() {
        let all =
            |kind: &str, names: &[&str]| what(kind, &names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).ok();
        assert_eq!(
            all("svc/web", &[]),
            Some((What::Resource(Kind::Service), vec!["web".to_owned()]))
        );
        assert_eq!(all("IN", &["web.2"]), Some((What::Instances, vec!["web.2".to_owned()])));
        assert_eq!(all("gadget", &[]), None);
    }
}
