//! A table of the packet filter as a value: its sets, and its chains as text. What changed is told in one transaction: only
//! the elements where the chains are the same, else the whole table. Connections that are known stay known either way.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The two tables of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    pub(super) inet: Table,
    pub(super) bridge: Table,
}

impl Ruleset {
    /// What `nft -f -` takes: both tables as they are to be, in one transaction, whatever they were before.
    #[must_use]
    pub fn whole(&self, table: &str) -> String {
        let Self { inet, bridge } = self;
        inet.whole(table) + &bridge.whole(table)
    }

    /// What leads from an older one to this, in one transaction; None where they are the same.
    #[must_use]
    pub fn since(&self, before: &Self, table: &str) -> Option<String> {
        let text = self.inet.since(&before.inet, table) + &self.bridge.since(&before.bridge, table);
        (!text.is_empty()).then_some(text)
    }

    /// What takes both away, where they are.
    #[must_use]
    pub fn gone(table: &str) -> String {
        let one = |family: &str| format!("table {family} {table} {{}}\ndelete table {family} {table}\n");
        one("inet") + &one("bridge")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    family: &'static str,
    sets: BTreeMap<String, Set>,
    chains: Vec<Chain>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    /// The type of its elements.
    of: &'static str,
    /// Whether its elements lead to verdicts.
    verdicts: bool,
    elements: BTreeMap<String, Option<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    name: String,
    base: Option<&'static str>,
    rules: Vec<String>,
}

impl Table {
    pub(super) fn new(family: &'static str) -> Self {
        Self {
            family,
            sets: BTreeMap::new(),
            chains: Vec::new(),
        }
    }

    pub(super) fn has(&self, set: &str) -> bool {
        self.sets.contains_key(set)
    }

    pub(super) fn set(&mut self, name: &str, of: &'static str) {
        self.put(name, of, false);
    }

    pub(super) fn map(&mut self, name: &str, of: &'static str) {
        self.put(name, of, true);
    }

    fn put(&mut self, name: &str, of: &'static str, verdicts: bool) {
        let set = Set {
            of,
            verdicts,
            elements: BTreeMap::new(),
        };
        self.sets.insert(name.to_owned(), set);
    }

    /// An element of a set that is there, with a verdict where it is a map.
    pub(super) fn add(&mut self, set: &str, element: &str, verdict: Option<String>) {
        if let Some(set) = self.sets.get_mut(set) {
            set.elements.insert(element.to_owned(), verdict);
        }
    }

    pub(super) fn chain(&mut self, name: &str, base: Option<&'static str>, rules: Vec<String>) {
        self.chains.push(Chain {
            name: name.to_owned(),
            base,
            rules,
        });
    }

    fn whole(&self, table: &str) -> String {
        let Self { family, sets, chains } = self;
        let mut text =
            format!("table {family} {table} {{}}\ndelete table {family} {table}\ntable {family} {table} {{\n");
        for (name, set) in sets {
            let (word, value) = if set.verdicts {
                ("map", " : verdict")
            } else {
                ("set", "")
            };
            let _ = writeln!(text, "\t{word} {name} {{\n\t\ttype {}{value}", set.of);
            if !set.elements.is_empty() {
                let _ = writeln!(text, "\t\telements = {{ {} }}", listed(set.elements.iter()));
            }
            text.push_str("\t}\n");
        }
        for Chain { name, base, rules } in chains {
            let _ = writeln!(text, "\tchain {name} {{");
            for line in base.iter().copied().chain(rules.iter().map(String::as_str)) {
                let _ = writeln!(text, "\t\t{line}");
            }
            text.push_str("\t}\n");
        }
        text.push_str("}\n");
        text
    }

    fn since(&self, before: &Self, table: &str) -> String {
        let shape = |table: &Self| -> Vec<(String, &'static str)> {
            table.sets.iter().map(|(name, set)| (name.clone(), set.of)).collect()
        };
        if self.chains != before.chains || shape(self) != shape(before) {
            return self.whole(table);
        }
        let mut text = String::new();
        for (name, set) in &self.sets {
            let old = before.sets.get(name).map(|set| &set.elements);
            let is_in = |of: Option<&BTreeMap<String, Option<String>>>, element: &String, verdict: &Option<String>| {
                of.is_some_and(|of| of.get(element) == Some(verdict))
            };
            let gone = old.into_iter().flatten();
            let gone: Vec<_> = gone
                .filter(|(element, verdict)| !is_in(Some(&set.elements), element, verdict))
                .collect();
            let new = set.elements.iter();
            let new: Vec<_> = new.filter(|(element, verdict)| !is_in(old, element, verdict)).collect();
            for (word, elements) in [("delete", gone), ("add", new)] {
                if !elements.is_empty() {
                    let elements = listed(elements.into_iter());
                    let _ = writeln!(text, "{word} element {} {table} {name} {{ {elements} }}", self.family);
                }
            }
        }
        text
    }
}

fn listed<'a>(elements: impl Iterator<Item = (&'a String, &'a Option<String>)>) -> String {
    let one = |(element, verdict): (&String, &Option<String>)| match verdict {
        Some(verdict) => format!("{element} : {verdict}"),
        None => element.clone(),
    };
    elements.map(one).collect::<Vec<_>>().join(", ")
}
