//! `reeve node replace`: a host that is gone for good leaves its name, its labels and roles and what is assigned to it to another.
//! The old one is shut out, and a token of that name alone is printed, with which the new one joins; where it was a seed, a token of
//! the seed, with which the new one takes its place among the store's members.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use membership::keep::Context;
use membership::members;
use membership::revoke::Revoker;
use membership::seat;
use membership::seeds::{Host, Seeds};
use membership::tokens::{self, Wanted};
use membership::voice::Voice;
use runtime::TlsFiles;
use schemas::names::NodeName;
use schemas::records::{CordonMode, NodeFacts, Verdict as NodeVerdict};
use serde_json::json;
use trust::identity::{Name, Subject};
use trust::token::Admits;

use crate::Verdict;
use crate::args::Common;
use crate::args::authority::ReplaceArgs;
use crate::failure::{Exit, Failure, folded};
use crate::nodes::{known, may_run_exclusive};
use crate::output::{self, Format, complain, print};
use crate::seats::{of_tokens, voice};
use crate::view::View;

/// Labels that an agent gives itself begin with it.
const OWN_LABELS: &str = "reeve.";
/// How long the seeds may take to cut connections.
const CUT: Duration = Duration::from_secs(30);
const MOST_TTL: Duration = Duration::from_secs(30 * 86_400);

pub async fn replace(common: &Common, args: &ReplaceArgs) -> Verdict {
    let node = &args.node;
    if args.ttl > MOST_TTL || args.ttl < Duration::from_secs(1) {
        return Err(Failure::usage("--ttl is from 1s to 30d"));
    }
    let cannot = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(Exit::Failed, format!("cannot replace node/{node}")).because(error)
    };
    let Some(voice) = voice(common)? else {
        return Err(Failure::new(
            Exit::Failed,
            "only the cluster's authority shuts a host out and lets another in",
        )
        .help(
            "run it on a seed, as root, or as a person with the right `admin`; on a store of your own, start an agent on the new \
             host with --node and that name",
        ));
    };
    let revoker = Revoker::of(voice.clone());
    let reached = known(common, std::slice::from_ref(node)).await;
    let (connection, _, view) = match reached {
        Ok(reached) => reached,
        Err(failure) => return Err(without_quorum(voice.dir(), failure).await),
    };
    let facts = view.facts.get(node).and_then(|facts| facts.as_ref().ok());
    let seat = facts.and_then(|facts| seat_of(facts, voice.seeds()));
    fits(node, args, &view, &voice, seat).await?;
    if !args.yes {
        let question = format!(
            "Shut the host of node/{node} out, and give its name{} to another, with {}?",
            seat.map_or("", |_| " and its seat among the seeds"),
            output::count(on(&view, node), "instance")
        );
        if !output::can_ask() {
            return Err(Failure::usage(format!(
                "this would shut node/{node} out, and there is no terminal to ask on"
            ))
            .help("add --yes if that is meant"));
        }
        if !output::ask(&question) {
            return Err(Failure::new(Exit::Failed, "not confirmed; nothing was changed"));
        }
    }
    let (name, subject) = (node.as_str().parse::<Name>(), format!("node/{node}").parse::<Subject>());
    let (name, subject) = (
        name.map_err(|error| cannot(&error))?,
        subject.map_err(|error| cannot(&error))?,
    );
    let why = args
        .note
        .as_deref()
        .unwrap_or("another host took its name (`reeve node replace`)");
    let revoked = revoker
        .revoke(&connection.store, &connection.root, &subject, why)
        .await
        .map_err(|error| cannot(&error))?;
    let seconds = args.ttl.as_secs();
    let wanted = match seat {
        Some(host) => Wanted::seat(voice.dir(), host, seconds).map_err(|error| of_tokens(&error))?,
        None => Wanted {
            admits: Admits::Node,
            names: BTreeSet::from([name]),
            uses: 1,
            seconds,
        },
    };
    let made = tokens::create(&voice, &connection.store, &connection.root, wanted).await;
    let (token, record) = made.map_err(|error| of_tokens(&error))?;
    let left = revoker.until_cut(revoked, CUT, seat).await;
    let left = left.map_err(|error| cannot(&error))?;
    for host in &left {
        complain(&format!(
            "the seed {host} has not said that it cut the old host's connections; it does when it is back\n"
        ));
    }
    let text = token.to_text();
    let install = install(node, voice.seeds(), facts);
    match common.output {
        Format::Json | Format::Yaml => {
            let value = json!({
                "node": node, "seed": seat, "token": text.as_str(), "id": record.id, "expires": record.expires.to_string(), "install": install,
            });
            print(&match common.output {
                Format::Yaml => output::yaml(&value),
                Format::Json | Format::Table | Format::Wide | Format::Name => output::json(&value),
            });
        }
        Format::Table | Format::Wide | Format::Name => {
            complain(&told(node, seat, &record.expires.to_string(), &install));
            print(&format!("{}\n", text.as_str()));
        }
    }
    Ok(Exit::Done)
}

/// What there is to do now, for people.
fn told(node: &NodeName, seat: Option<&Host>, expires: &str, install: &str) -> String {
    let there = format!("There, with this token in the file `token` (until {expires}):");
    let old = "What still runs on the old host is for you to stop there, with `reeve uninstall --force`. Data in volumes is not \
               brought along.";
    let (before, after) = match seat {
        None => (
            vec![format!(
                "node/{node} is shut out; its name, and what is assigned to it, wait for another host."
            )],
            Vec::new(),
        ),
        Some(host) => (
            vec![
                format!(
                    "node/{node} is shut out; its name, what is assigned to it, and the seat of the seed {host} wait for another host."
                ),
                format!("A seat goes by its address: that host must have {host}."),
            ],
            vec![
                "Who has this token in that time can be the cluster: keep it as a password. The old disk holds the authority's key: \
                 unless it is destroyed, run `reeve admin rotate-authority` when the new host is there."
                    .to_owned(),
            ],
        ),
    };
    let mut text = String::new();
    for line in before.iter().chain([&there]) {
        text.push_str(&format!("{}\n", folded(line, 0)));
    }
    text.push_str(&format!("  {install}\n"));
    for line in after.iter().map(String::as_str).chain([old]) {
        text.push_str(&format!("{}\n", folded(line, 0)));
    }
    text
}

/// A store that cannot be reached from a seed: which of its members are away, and what that means.
async fn without_quorum(dir: &Path, failure: Failure) -> Failure {
    let Some(context) = Context::in_dir(dir) else {
        return failure;
    };
    let tls = TlsFiles {
        ca: context.ca,
        identity: Some((context.cert, context.key)),
    };
    let Ok(seen) = members::look(&context.endpoints, Some(&tls)).await else {
        return failure;
    };
    let silent: Vec<String> = { seen.iter() }
        .filter(|one| one.health.is_err())
        .map(|one| one.url.clone())
        .collect();
    if silent.len() * 2 < seen.len() {
        return failure;
    }
    let failure = Failure::new(
        Exit::Unreachable,
        format!(
            "the store has no majority, so that nobody can be replaced: {} of {} are away",
            silent.len(),
            output::count(seen.len(), "member")
        ),
    )
    .help(
        "bring back as many of their hosts as make a majority, with their disks; what runs goes on meanwhile. When they are gone for \
         good: stop `reeve server` on a seed that is left, run its etcd once with --force-new-cluster, start it again, and let the \
         others come with `reeve token create --seed` (decision 22 has the commands)",
    );
    silent.into_iter().fold(failure, Failure::detail)
}

fn on(view: &View, node: &NodeName) -> usize {
    let instances = view.instances();
    instances
        .iter()
        .filter(|found| found.node == node && !found.is_absent())
        .count()
}

/// Whether the node may be replaced now.
async fn fits(
    node: &NodeName,
    args: &ReplaceArgs,
    view: &View,
    voice: &Voice,
    seat: Option<&Host>,
) -> Result<(), Failure> {
    if view.cordon(node) == Some(CordonMode::Retire) {
        return Err(Failure::new(
            Exit::Failed,
            format!("node/{node} was taken out of the cluster, and what it ran is elsewhere"),
        )
        .help(format!(
            "a host joins under its name with `reeve token create --node {node}`, then `reeve uncordon {node}`"
        )));
    }
    if let Some(host) = seat {
        let Some(own) = voice.own() else {
            return Err(Failure::new(
                Exit::Failed,
                format!("node/{node} is on the seed {host}, and a seed's token is made on another seed alone"),
            )
            .help("run it there, as root"));
        };
        if host == own {
            return Err(Failure::new(
                Exit::Failed,
                format!("the host of node/{node} is this very seed, {host}"),
            )
            .help("run it on another seed, when this one is gone for good"));
        }
        if seat::answers(host).await {
            return Err(Failure::new(
                Exit::Conflict,
                format!("node/{node} is on the seed {host}, and that answers: its seat is taken"),
            )
            .help(
                "stop the old host first; when it is in wrong hands, cut it off from the network, and afterwards replace the \
                 authority with `reeve admin rotate-authority`",
            ));
        }
    }
    if let Some(instance) = may_run_exclusive(view, node) {
        return Err(Failure::new(
            Exit::Conflict,
            format!("{instance} is exclusive, and may still run on node/{node}: the new host would run it too"),
        )
        .help(format!(
            "stop the old host, and say that it is off with `reeve node confirm-lost {node}`; where the service has \
             `onDisconnect.stopAfter`, run this when that time is over"
        )));
    }
    let lives = view.sessions.contains_key(node) || view.verdict(node) == NodeVerdict::Ready;
    if lives && !args.although_it_answers {
        return Err(Failure::new(
            Exit::Conflict,
            format!("node/{node} answers: what it runs would run twice"),
        )
        .help(
            "stop the old host first; or, when it is in wrong hands, add --although-it-answers: it is shut out, and what it runs goes on there",
        ));
    }
    Ok(())
}

/// Which seed the node's host is, by its addresses.
fn seat_of<'a>(facts: &NodeFacts, seeds: &'a Seeds) -> Option<&'a Host> {
    let mut seeds = seeds.iter();
    let here = |address: IpAddr| facts.addresses.host.contains(&address);
    seeds.find(|host| host.address().is_some_and(here))
}

/// What a person runs on the new host, so that it is to placement what the old one was.
fn install(node: &NodeName, seeds: &Seeds, facts: Option<&NodeFacts>) -> String {
    let mut line = format!("reeve install --seeds {seeds} --token-file token --node {node}");
    let Some(facts) = facts else { return line };
    for role in &facts.roles {
        line.push_str(&format!(" --role {role}"));
    }
    for (key, value) in facts.labels.iter().filter(|(key, _)| !key.starts_with(OWN_LABELS)) {
        line.push_str(&format!(" --label {}", quoted(&format!("{key}={value}"))));
    }
    line
}

/// As a shell reads it back: what a node wrote is not to be believed.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '=');
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_wrote_is_quoted_for_the_shell() {
        assert_eq!(quoted("zone=a-1.b/c"), "zone=a-1.b/c");
        assert_eq!(quoted("x; rm -rf /"), "'x; rm -rf /'");
        assert_eq!(quoted("it's\n$(x)"), "'it'\\''s$(x)'");
        assert_eq!(quoted(""), "''");
    }
}
