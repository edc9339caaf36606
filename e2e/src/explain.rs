//! What a failed test leaves to read: the state of the cluster as its people would ask for it. Whatever of a lab is dropped
//! first while the test panics calls it, before anything of the cluster ends.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::process::{Place, reeve, run};

static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Prints what is not in force in the cluster of this store, once.
pub(crate) fn explain(place: Option<&Place>, endpoints: &str) {
    let id = format!("{}{endpoints}", place.map_or("", |place| &place.netns));
    if !TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
        return;
    }
    let ask = |args: &[&str]| -> String {
        let mut command = Command::new("timeout");
        command.arg("10");
        command.args(place.iter().flat_map(|place| place.words()));
        command.arg(reeve()).args(args);
        command
            .env("REEVE_ETCD", endpoints)
            .env("NO_COLOR", "1")
            .env("COLUMNS", "200");
        let output = run(&mut command);
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        format!("{out}{err}")
    };
    let services = ask(&["get", "services", "-o", "wide"]);
    eprintln!(
        "--- the cluster at {endpoints}:\n{}",
        ask(&["get", "nodes", "-o", "wide"])
    );
    eprintln!("{services}");
    for line in services.lines().skip(1) {
        let mut words = line.split_whitespace();
        let (Some(name), ready, _, state) = (words.next(), words.next(), words.next(), words.next()) else {
            continue;
        };
        let whole = ready.and_then(|text| text.split_once('/')).is_some_and(|(a, b)| a == b);
        if !whole || state != Some("Ready") {
            eprintln!("--- describe {name}:\n{}", ask(&["describe", "service", name]));
        }
    }
    eprintln!("{}", ask(&["get", "instances", "-o", "wide"]));
    let events = ask(&["events", "-A"]);
    let lines: Vec<&str> = events.lines().collect();
    eprintln!(
        "--- last events:\n{}",
        lines[lines.len().saturating_sub(40)..].join("\n")
    );
}
