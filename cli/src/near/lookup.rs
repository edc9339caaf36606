//! `reeve lookup`: what the names' servers of nodes answer to a name, beside what the store says they should, who is behind the
//! answer, and why there is none.

use std::collections::{BTreeMap, BTreeSet};

use agent::api::ask::Ask;
use planner::network::lookup::{Came, Found, Known, Type, Wanted, look, same, why};
use planner::network::names::{Names, Realm};
use schemas::names::NodeName;
use schemas::records::Endpoint;
use serde_json::{Value, json};

use super::ground::{Records, ask_each, meant, records};
use super::prepare;
use crate::Verdict;
use crate::args::Common;
use crate::args::seen::LookupArgs;
use crate::failure::{Exit, Failure, printable};
use crate::output::{self, Cell, Format, Table, Tone, print};

pub async fn lookup(common: &Common, args: &LookupArgs) -> Verdict {
    let (connection, view, ways) = prepare(common).await?;
    let marker = connection.marker().await?;
    let records = records(&connection, &marker).await?;
    let from = args.from.clone().or_else(|| common.namespace.clone());
    let wanted = Wanted {
        name: args.name.clone(),
        kind: args.kind.map_or_else(|| Type::meant(&args.name), |word| word.kind()),
        from: from.unwrap_or_default(),
    };
    let nodes = meant(&view, &ways, &args.node, args.all_nodes)?;
    let told = ask_each(
        &view,
        &ways,
        "look a name up",
        nodes,
        &Ask::Lookup { wanted: wanted.clone() },
    )
    .await;
    let answer = Answer::new(&records, &wanted, told);
    match common.output {
        Format::Json => print(&output::json(&answer.value())),
        Format::Yaml => print(&output::yaml(&answer.value())),
        Format::Name => answer.found.records.iter().for_each(|one| print(&format!("{one}\n"))),
        Format::Table | Format::Wide => print(&answer.text(output::limit_of(common.output == Format::Wide))),
    }
    Ok(answer.exit())
}

/// All that is known of a name.
struct Answer<'a> {
    wanted: &'a Wanted,
    /// Of the one node that was asked, else of the store.
    found: Found,
    by: Option<NodeName>,
    why: Option<String>,
    instances: Vec<&'a Endpoint>,
    nodes: BTreeMap<NodeName, Told>,
}

/// What a node said.
enum Told {
    Same(Found),
    /// Something else than the store.
    Differs(Found),
    Nothing(Failure),
}

impl<'a> Answer<'a> {
    fn new(records: &'a Records, wanted: &'a Wanted, told: BTreeMap<NodeName, Result<Found, Failure>>) -> Self {
        let settings = &records.settings;
        let mut names = Names::new(Realm {
            domain: settings.domain.clone(),
            cidr: settings.cidr,
            cidr6: settings.cidr6,
            servers: Vec::new(),
            hosts: BTreeSet::new(),
            own: BTreeMap::new(),
        });
        for (key, record) in &records.endpoints {
            if let Some(namespace) = &key.namespace {
                names.put(namespace, &key.name, record);
            }
        }
        let known = Known {
            domain: &settings.domain,
            endpoints: &records.endpoints,
            policies: &records.policies,
        };
        let sees = |asker: &str, namespace: &str, service: &str| known.sees(asker, namespace, service);
        let computed = look(&names, wanted, &sees);
        let nodes: BTreeMap<NodeName, Told> = told
            .into_iter()
            .map(|(node, told)| {
                let told = match told {
                    Ok(found) if same(&found, &computed) => Told::Same(found),
                    Ok(found) => Told::Differs(found),
                    Err(failure) => Told::Nothing(failure),
                };
                (node, told)
            })
            .collect();
        let mut one = nodes.iter();
        let single = match (one.next(), one.next()) {
            (Some((node, Told::Same(found) | Told::Differs(found))), None) => Some((node.clone(), found.clone())),
            (_, _) => None,
        };
        let (by, found) = single.map_or((None, computed), |(node, found)| (Some(node), found));
        let subject = known.subject(wanted);
        let record = subject.as_ref().and_then(|subject| {
            let own = subject.namespace == wanted.from;
            let sees = || {
                known.sees(
                    wanted.from.as_str(),
                    subject.namespace.as_str(),
                    subject.service.as_str(),
                )
            };
            // What a namespace may not see is not shown in its name.
            (own || sees()).then(|| known.record(subject)).flatten()
        });
        // Of another service than the one that answered nothing is to be told.
        let instances = record.map_or(Vec::new(), |record| record.instances.iter().collect());
        let why = why(&known, wanted, &found).or_else(|| {
            let differs = nodes.values().any(|told| matches!(told, Told::Differs(_)));
            differs.then(|| {
                "what is marked does not say what the store has: see NamesDown in `reeve network status`".to_owned()
            })
        });
        Self {
            wanted,
            found,
            by,
            why,
            instances,
            nodes,
        }
    }

    fn is_answered(&self, one: &Endpoint) -> bool {
        let target = format!("{}.", one.slot);
        let found = &self.found.records;
        found.iter().any(|record| {
            one.addresses().any(|address| *record == address.to_string())
                || record
                    .split(' ')
                    .next_back()
                    .is_some_and(|name| name.starts_with(&target))
        })
    }

    fn exit(&self) -> Exit {
        let differs = self.nodes.values().any(|told| matches!(told, Told::Differs(_)));
        let silent = self.nodes.values().find_map(|told| match told {
            Told::Nothing(failure) => Some(failure.exit),
            Told::Same(_) | Told::Differs(_) => None,
        });
        if differs || self.found.came != Came::Answered {
            return Exit::Conflict;
        }
        silent.unwrap_or(Exit::Done)
    }

    fn value(&self) -> Value {
        let nodes: Vec<Value> = self
            .nodes
            .iter()
            .map(|(node, told)| match told {
                Told::Same(found) => json!({ "node": node, "answer": found, "differs": false }),
                Told::Differs(found) => json!({ "node": node, "answer": found, "differs": true }),
                Told::Nothing(failure) => json!({ "node": node, "error": failure.sentence() }),
            })
            .collect();
        let instances: Vec<Value> = self
            .instances
            .iter()
            .map(|one| {
                json!({ "slot": one.slot, "node": one.node, "address": one.address, "address6": one.address6,
                    "ready": one.ready, "answered": self.is_answered(one) })
            })
            .collect();
        json!({ "asked": self.wanted, "answer": self.found, "answeredBy": self.by, "why": self.why,
            "instances": instances, "nodes": nodes })
    }

    fn text(&self, limit: Option<usize>) -> String {
        let kind = self.wanted.kind.word();
        let name = printable(&self.found.name);
        let source = match &self.by {
            Some(node) => format!("as {node} answers namespace {}", self.wanted.from),
            None => format!("as the store has it for namespace {}", self.wanted.from),
        };
        let mut text = format!("{name} {kind}, {source}\n");
        match (&self.found.came, &self.why) {
            (Came::Answered, _) => {
                for record in self.found.records.iter().take(50) {
                    text.push_str(&format!("  {}\n", printable(record)));
                }
                if self.found.records.len() > 50 {
                    text.push_str(&format!("  and {} more: -o json\n", self.found.records.len() - 50));
                }
            }
            (Came::Empty | Came::NoSuchName | Came::Elsewhere, why) => {
                let why = why.as_deref().unwrap_or("its server does not have it");
                let lines = output::wrap(&format!("no answer: {why}"), limit.unwrap_or(usize::MAX));
                text.push_str(&(lines.join("\n") + "\n"));
            }
        }
        if !self.instances.is_empty() {
            let mut table = Table::new(&["SLOT", "NODE", "ADDRESS", "READY", "ANSWERED"]);
            let yes =
                |is: bool, tone: Tone| Cell::new(if is { "yes" } else { "no" }, if is { Tone::Plain } else { tone });
            for one in self.instances.iter().take(50) {
                let addresses: Vec<String> = one.addresses().map(|address| address.to_string()).collect();
                table.row(vec![
                    one.slot.to_string().into(),
                    one.node.as_str().into(),
                    addresses.join(",").into(),
                    yes(one.ready, Tone::Busy),
                    yes(self.is_answered(one), Tone::Plain),
                ]);
            }
            text.push_str(&format!("\n{}", table.render(limit)));
        }
        if self.nodes.len() > 1 || self.nodes.values().any(|told| !matches!(told, Told::Same(_))) {
            let mut table = Table::of_sentences(&["NODE", "SAYS", "ANSWER"]);
            for (node, told) in &self.nodes {
                let (word, tone, said) = match told {
                    Told::Same(found) => ("the same", Tone::Good, records_of(found)),
                    Told::Differs(found) => ("differs", Tone::Bad, records_of(found)),
                    Told::Nothing(failure) => ("nothing", Tone::Bad, failure.sentence()),
                };
                table.row(vec![node.as_str().into(), Cell::new(word, tone), said.into()]);
            }
            text.push_str(&format!("\n{}", table.render(limit)));
        }
        text
    }
}

fn records_of(found: &Found) -> String {
    let few: Vec<&str> = found.records.iter().take(8).map(String::as_str).collect();
    match found.came {
        Came::Answered if found.records.len() > few.len() => {
            format!("{}, and {} more", few.join(", "), found.records.len() - few.len())
        }
        Came::Answered => few.join(", "),
        Came::Empty => "nothing of this type".to_owned(),
        Came::NoSuchName => "no such name".to_owned(),
        Came::Elsewhere => "none of the cluster's names".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn records() -> Records {
        let settings = serde_json::from_value(json!({
            "cidr": "10.88.0.0/16", "nodePrefix": 24, "backend": "none", "domain": "reeve.internal", "port": 1
        }));
        let record = serde_json::from_value(json!({
            "schemaVersion": schemas::records::SchemaVersion::default(),
            "cluster": schemas::records::ClusterId::from_random([1; 16]),
            "instances": [
                { "slot": "1", "node": "n1", "address": "10.88.0.2", "ready": true },
                { "slot": "2", "node": "n2", "address": "10.88.1.2", "ready": false },
            ],
        }));
        let key = crate::view::service_key(&"default".parse().expect("a namespace"), &"db".parse().expect("a name"));
        Records {
            settings: settings.expect("settings"),
            endpoints: [(key, Arc::new(record.expect("a record")))].into(),
            policies: BTreeMap::new(),
            peers: BTreeMap::new(),
        }
    }

    fn said(records: &[&str]) -> Result<Found, Failure> {
        Ok(Found {
            name: "db.default.reeve.internal".to_owned(),
            came: if records.is_empty() {
                Came::Empty
            } else {
                Came::Answered
            },
            records: records.iter().map(|one| (*one).to_owned()).collect(),
        })
    }

    #[test]
    fn a_node_that_says_something_else_than_the_store_is_marked() {
        let records = records();
        let wanted = Wanted {
            name: "db".to_owned(),
            kind: Type::A,
            from: "default".parse().expect("a namespace"),
        };
        let node = |name: &str| name.parse::<NodeName>().expect("a name");
        let silent = Failure::new(Exit::Unreachable, "cannot look a name up on node n3");
        let told = [
            (node("n1"), said(&["10.88.0.2"])),
            (node("n2"), said(&["10.88.0.2", "10.88.1.2"])),
            (node("n3"), Err(silent)),
        ];
        let answer = Answer::new(&records, &wanted, told.into());
        let text = anstream::adapter::strip_str(&answer.text(Some(80))).to_string();
        assert_eq!(
            text,
            "db.default.reeve.internal A, as the store has it for namespace default\n  10.88.0.2\n\n\
             SLOT   NODE   ADDRESS     READY   ANSWERED\n\
             1      n1     10.88.0.2   yes     yes\n\
             2      n2     10.88.1.2   no      no\n\n\
             NODE   SAYS       ANSWER\n\
             n1     the same   10.88.0.2\n\
             n2     differs    10.88.0.2, 10.88.1.2\n\
             n3     nothing    cannot look a name up on node n3\n"
        );
        assert_eq!(answer.exit(), Exit::Conflict);
        let one = Answer::new(&records, &wanted, [(node("n1"), said(&["10.88.0.2"]))].into());
        assert_eq!((one.exit(), one.by), (Exit::Done, Some(node("n1"))));
    }
}
