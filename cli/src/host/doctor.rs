//! `reeve doctor`: looks at this host, the store and its members, certificates, clocks and nodes, and says of each whether it
//! is well and else what to do. It changes nothing, needs no cluster, and works from any machine that reaches one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use agent::api::{Client, SOCKET, Way};
use membership::bootstrap::Stage;
use membership::keep::{Context, Keep};
use membership::members::{self, Seen};
use membership::seed::{KNOWN, Known};
use membership::seeds::Seeds;
use membership::voice::Voice;
use runtime::TlsFiles;
use schemas::records::Verdict as Held;
use serde_json::json;
use trust::certificate::Certificate;
use trust::key::Fingerprint;
use trust::validity::Validity;

use super::check::{self, Level, Line};
use super::look::{Wanted, judge, look};
use super::{Installed, Places, advisories, authority, service};
use crate::Verdict;
use crate::args::Common;
use crate::args::host::DoctorArgs;
use crate::connect::{connect, default_data_dir, reach};
use crate::failure::{Exit, Failure};
use crate::output::{self, print};
use crate::seats::{asks, server_dir};
use crate::view::View;

const DAY: u64 = 86_400;
/// Seeds are given this much room for their store.
const SEED_QUOTA_BYTES: i64 = 4_294_967_296;
/// etcd's own, where nobody says otherwise.
const USUAL_QUOTA_BYTES: i64 = 2_147_483_648;
/// Clocks that differ by more are worth a look, in seconds.
const CLOCK_WARN: u64 = 2;
/// By more, certificates and tokens are refused.
const CLOCK_BAD: u64 = 60;

/// What of Reeve is on this host.
struct Here {
    places: Places,
    installed: Option<Installed>,
    /// What a seed's disk says.
    known: Option<Known>,
    /// Whether an agent's data is here.
    agent: bool,
    up: bool,
}

impl Here {
    fn find(common: &Common) -> Self {
        let places = Places::of(common);
        let known = Keep::beside(&places.server()).read_json(KNOWN).ok().flatten();
        Self {
            installed: Installed::read(&places).ok().flatten(),
            known,
            agent: places.agent().is_dir(),
            up: common
                .data_dir
                .clone()
                .unwrap_or_else(default_data_dir)
                .join("store")
                .is_dir(),
            places,
        }
    }

    fn any(&self) -> bool {
        self.installed.is_some() || self.known.is_some() || self.agent || self.up
    }

    fn seeds(&self) -> Option<&Seeds> {
        let known = self.known.as_ref().map(|known| &known.seeds);
        known.or(self.installed.as_ref().map(|installed| &installed.seeds))
    }

    /// How the agent of this host reaches the store.
    fn member(&self) -> Option<(Vec<String>, TlsFiles)> {
        let context = Context::in_dir(&self.places.agent().join("member"))?;
        let tls = TlsFiles {
            ca: context.ca,
            identity: Some((context.cert, context.key)),
        };
        Some((context.endpoints, tls))
    }

    fn authority(&self) -> Option<Fingerprint> {
        let dirs = [self.places.server(), self.places.agent().join("member")];
        let bundle = dirs.iter().find_map(|dir| Keep::beside(dir).bundle().ok().flatten())?;
        bundle.authorities().next().map(|authority| authority.fingerprint())
    }
}

/// `reeve doctor`.
pub async fn doctor(common: &Common, args: &DoctorArgs) -> Verdict {
    let here = Here::find(common);
    let (endpoints, tls, told) = reach(common)?;
    let mut lines = Vec::new();
    let connection = connect(common).await;
    // On a machine that is no part of it there need be no engine.
    if here.any() || (connection.is_err() && !told) {
        lines.extend(host(args, &here).await);
        if args.docker.is_none()
            && let Some(node) = running_agent(common).await
        {
            // Its agent may have been given another engine than the usual one.
            for line in lines
                .iter_mut()
                .filter(|line| line.check == "docker" && line.level == Level::Bad)
            {
                *line = Line::ok(
                    "docker",
                    format!("node {node} runs here with an engine of its own; --docker looks at it"),
                );
            }
        }
    } else {
        lines.push(Line::ok(
            "this host",
            "no part of Reeve is here: its engine and disk are not looked at",
        ));
    }
    match &connection {
        Ok(connection) => {
            let asks = asks(common).unwrap_or_default();
            lines.extend(store(&endpoints, tls.as_ref(), &here, asks.as_ref().map(Voice::seeds)).await);
            match connection.marker().await {
                Ok(marker) => {
                    lines.push(Line::ok("cluster", marker.record.id.to_string()));
                    lines.extend(nodes(connection).await);
                    if let Some(asks) = asks {
                        lines.extend(authority::lines(connection, asks).await);
                    }
                }
                Err(failure) => lines.push(of_failure("cluster", &failure)),
            }
        }
        Err(failure) if told => lines.push(of_failure("store", failure)),
        // A node that is no seed reaches the store as itself, and sees no more of it than is its own.
        Err(_) if here.member().is_some() => {
            if let Some((endpoints, tls)) = here.member() {
                lines.extend(members_of(&endpoints, Some(&tls), SEED_QUOTA_BYTES, here.seeds()).await);
            }
            lines.push(Line::ok("nodes", "are looked at where `reeve doctor` runs on a seed"));
        }
        Err(_) => lines.push(Line::warn(
            "cluster",
            format!("there is none here, nor at {}", endpoints.join(",")),
            "`reeve up` starts one on this machine, `reeve install` on several; --etcd names one elsewhere",
        )),
    }
    lines.extend(certificates(common, &here));
    lines.extend(seeds(&here).await);
    let bad = check::count(&lines, Level::Bad);
    let warn = check::count(&lines, Level::Warn);
    if common.output.is_for_machines() {
        let value = json!({ "checks": lines, "bad": bad, "warn": warn });
        print(&match common.output {
            output::Format::Yaml => output::yaml(&value),
            output::Format::Json | output::Format::Name | output::Format::Table | output::Format::Wide => {
                output::json(&value)
            }
        });
    } else {
        let all = lines.len();
        if args.quiet {
            lines.retain(|line| line.level != Level::Ok);
        }
        print(&check::render(&lines, output::limit()));
        let things = output::count(all, "thing");
        print(&format!("\n{things} looked at: {bad} bad, {warn} to be warned of\n"));
    }
    Ok(if bad == 0 { Exit::Done } else { Exit::Failed })
}

/// The node whose agent runs here with the data of `reeve up`.
async fn running_agent(common: &Common) -> Option<String> {
    let dir = common.data_dir.clone().unwrap_or_else(default_data_dir);
    let client = Client::new(Way::Socket(dir.join("agent").join(SOCKET)));
    client.who().await.ok().map(|who| who.node)
}

fn of_failure(check: &str, failure: &Failure) -> Line {
    let help = failure
        .remedy()
        .unwrap_or("see `reeve status`, and the logs of what serves it");
    Line::bad(check, failure.sentence(), help)
}

/// This host, and whether what is installed on it runs.
async fn host(args: &DoctorArgs, here: &Here) -> Vec<Line> {
    let wanted = Wanted {
        docker: args.docker.clone().or_else(|| docker_of(here.installed.as_ref())),
        agent: here.installed.as_ref().is_none_or(|installed| installed.node.is_some()),
        seed: here.known.as_ref().map(|known| known.host.clone()),
        etcd_program: args.etcd_program.clone(),
        seeds: here.seeds().cloned(),
        data: here.places.base.clone(),
        // They are taken by what is looked at, or of no use.
        running: true,
        token_made: None,
    };
    let mut lines = judge(&look(&wanted).await);
    for line in lines
        .iter_mut()
        .filter(|line| line.check == "user" && line.level == Level::Bad)
    {
        line.level = Level::Warn;
        line.found = "not root: keys and programs of this host are not seen".to_owned();
    }
    if let Some(installed) = &here.installed {
        for (name, state) in service::states(installed, &here.places).await {
            lines.push(match (state.pid, state.ends) {
                (Some(pid), 0) => Line::ok(name, format!("runs as process {pid}")),
                (Some(_), ends) => Line::warn(
                    name,
                    format!(
                        "runs, and was started again {}: {}",
                        output::count(ends as usize, "time"),
                        state.why.unwrap_or_default()
                    ),
                    "see its log: `reeve install --status` says where",
                ),
                (None, _) => Line::bad(
                    name,
                    format!("does not run: {}", state.why.unwrap_or_default()),
                    "`reeve install --status` says how to start it",
                ),
            });
        }
    }
    lines
}

/// The engine that the installed agent was told.
fn docker_of(installed: Option<&Installed>) -> Option<String> {
    let words = installed?
        .programs
        .iter()
        .filter(|program| program.name == "agent")
        .flat_map(|program| &program.args);
    words.skip_while(|word| *word != "--docker").nth(1).cloned()
}

/// The members.
async fn members_of(endpoints: &[String], tls: Option<&TlsFiles>, quota: i64, seeds: Option<&Seeds>) -> Vec<Line> {
    match members::look(endpoints, tls).await {
        Ok(seen) => {
            let mut lines = judge_members(&seen, quota);
            lines.extend(
                seeds
                    .map(|seeds| authority::judge_seats(&seen, seeds))
                    .unwrap_or_default(),
            );
            lines
        }
        Err(error) => vec![Line::bad(
            "store",
            runtime::chain(&error),
            "see that the files of --ca, --cert and --key can be read",
        )],
    }
}

/// The store: its members and its alarms.
async fn store(endpoints: &[String], tls: Option<&TlsFiles>, here: &Here, seeds: Option<&Seeds>) -> Vec<Line> {
    let quota = if seeds.is_some() || here.known.is_some() {
        SEED_QUOTA_BYTES
    } else {
        USUAL_QUOTA_BYTES
    };
    let mut lines = members_of(endpoints, tls, quota, seeds).await;
    match members::alarms(endpoints, tls).await {
        Ok(alarms) if alarms.is_empty() => lines.push(Line::ok("alarms", "none")),
        Ok(alarms) => lines.push(Line::bad(
            "alarms",
            alarms.join(", "),
            "NOSPACE: compact, `etcdctl defrag` each member, then `etcdctl alarm disarm`; CORRUPT: take that member out and let it come again",
        )),
        Err(error) => lines.push(Line::warn("alarms", error.plain(), "ask again, or `etcdctl alarm list`")),
    }
    lines
}

fn mib(bytes: i64) -> String {
    format!("{} MiB", (bytes.max(0) + (1 << 20) - 1) >> 20)
}

/// What is to be said of the members.
fn judge_members(seen: &[Seen], quota: i64) -> Vec<Line> {
    let mut lines = Vec::new();
    let healthy: Vec<_> = seen.iter().filter_map(|one| one.health.as_ref().ok()).collect();
    let votes = healthy
        .iter()
        .filter(|health| !health.learner && health.leader != 0)
        .count();
    let known = seen.iter().filter(|one| one.id.is_some()).count();
    if known > 0 {
        let found = format!("{votes} of {} are well", output::count(known, "member"));
        lines.push(if votes <= known / 2 {
            Line::bad(
                "store",
                format!("{found}: no majority, so nothing can be written"),
                "bring the others back: each is named below",
            )
        } else if votes < known {
            let fix = match votes - known / 2 - 1 {
                0 => "bring the others back: with one more away nothing can be written".to_owned(),
                more => format!("bring the others back: {more} more may fail before nothing can be written"),
            };
            Line::warn("store", found, fix)
        } else if known.is_multiple_of(2) {
            Line::warn(
                "store",
                found,
                "an even number survives no more failures than one fewer: add one, or take one out",
            )
        } else if known == 1 {
            Line::ok("store", format!("{found}; with one alone nothing may fail"))
        } else {
            Line::ok("store", found)
        });
    } else {
        lines.push(Line::ok(
            "store",
            format!("answers at {}", seen.first().map_or("", |one| one.url.as_str())),
        ));
    }
    let leaders: BTreeSet<u64> = healthy.iter().map(|health| health.leader).collect();
    if known > 0 && leaders.len() > 1 {
        lines.push(Line::warn(
            "leader",
            "members name different leaders",
            "look again in a moment; if it stays so, look at the network between them",
        ));
    }
    for one in seen {
        let check = if one.name.is_empty() {
            format!("member {}", if one.url.is_empty() { &one.peer } else { &one.url })
        } else {
            format!("member {}", one.name)
        };
        lines.push(match &one.health {
            Err(why) => Line::bad(check, why, "see that its host is up, `reeve server` runs there, and ports 2379 and 2380 are open"),
            Ok(health) if !health.errors.is_empty() => Line::bad(check, health.errors.join("; "), "see alarms below"),
            Ok(health) => {
                let leads = if one.id == Some(health.leader) { ", leads" } else { "" };
                let size = format!("etcd {}, {} of {}{leads}", health.version, mib(health.db_size_bytes), mib(quota));
                let unused = health.db_size_bytes.saturating_sub(health.db_used_bytes);
                if health.db_size_bytes > quota / 10 * 8 {
                    Line::bad(check, size, "at its quota nothing more can be written: `etcdctl compact` and `etcdctl defrag`, or a larger quota")
                } else if health.db_size_bytes > quota / 2 {
                    Line::warn(check, size, "more than half of its quota: `etcdctl defrag` gives unused pages back")
                } else if health.db_used_bytes > 0 && unused > 512 << 20 {
                    Line::warn(check, format!("{size}, {} of it unused", mib(unused)), "`etcdctl defrag` gives them back")
                } else {
                    Line::ok(check, size)
                }
            }
        });
    }
    // The embedded store copies etcd's version with its interface, and has no users.
    let versions: BTreeSet<&str> = seen
        .iter()
        .filter(|one| one.id.is_some())
        .filter_map(|one| Some(one.health.as_ref().ok()?.version.as_str()))
        .collect();
    if versions.len() > 1 {
        let all: Vec<&str> = versions.iter().copied().collect();
        lines.push(Line::warn(
            "etcd versions",
            all.join(", "),
            "bring all members to the same one",
        ));
    }
    for version in versions {
        let known = advisories::of(version);
        if known.is_empty() {
            lines.push(Line::ok(format!("etcd {version}"), "no known faults that matter here"));
            continue;
        }
        let fix = format!(
            "go to {} or later; until then rights within the store hold nobody back who has a certificate for it",
            advisories::remedy(version, &known).unwrap_or_default()
        );
        for advisory in known {
            let found = format!("{}: {}", advisory.id, advisory.what);
            let check = format!("etcd {version}");
            lines.push(if advisory.loses_data {
                Line::bad(
                    check,
                    found,
                    "go to a release without it before any member is restarted",
                )
            } else {
                Line::warn(check, found, &fix)
            });
        }
    }
    lines
}

/// The nodes, as their leader holds them to be, and their versions.
async fn nodes(connection: &crate::connect::Connection) -> Vec<Line> {
    let view = match View::read(connection, &["nodes", "verdicts", "reports"]).await {
        Ok(view) => view,
        Err(failure) => return vec![of_failure("nodes", &failure)],
    };
    let mut lines = Vec::new();
    lines.push(match &view.leader {
        Some(leader) => Line::ok("controller", format!("{leader} leads")),
        None => Line::bad(
            "controller",
            "none leads: nothing is placed, moved or replaced",
            "start one: `reeve server` on a seed, or `reeve controller`",
        ),
    });
    let well = view.facts.len()
        - view
            .verdicts
            .values()
            .filter(|record| record.verdict != Held::Ready)
            .count()
            .min(view.facts.len());
    lines.push(Line::ok("nodes", format!("{well} of {} ready", view.facts.len())));
    for (node, record) in &view.verdicts {
        let check = format!("node {node}");
        match record.verdict {
            Held::Ready => {}
            Held::Retired => lines.push(Line::ok(check, "retired")),
            Held::Unreachable => {
                lines.push(Line::bad(
                    check,
                    &record.reason,
                    "see that its host is up and `reeve agent` runs there",
                ));
            }
            Held::Lost => lines.push(Line::bad(
                check,
                &record.reason,
                format!("bring it back, or take it out for good with `reeve node rm {node}`"),
            )),
        }
    }
    for (node, report) in &view.reports {
        for condition in report.iter().flat_map(|report| &report.conditions) {
            lines.push(Line::bad(
                format!("node {node}"),
                format!("{}: {}", condition.reason, condition.message),
                format!("`reeve describe node {node}` says more"),
            ));
        }
    }
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (node, facts) in &view.facts {
        if let Ok(facts) = facts {
            versions
                .entry(facts.agent_version.clone())
                .or_default()
                .push(node.to_string());
        }
    }
    lines.push(judge_versions(&versions));
    lines
}

fn judge_versions(versions: &BTreeMap<String, Vec<String>>) -> Line {
    let own = env!("CARGO_PKG_VERSION");
    if versions.keys().all(|version| version == own) {
        return Line::ok("versions", format!("reeve {own} everywhere"));
    }
    let told: Vec<String> = versions
        .iter()
        .map(|(version, nodes)| match nodes.as_slice() {
            [one] => format!("{version} on {one}"),
            several => format!("{version} on {} nodes", several.len()),
        })
        .collect();
    Line::warn(
        "versions",
        format!("reeve {own} here; agents: {}", told.join(", ")),
        "bring all to the same release; agents can be replaced at any time, their containers keep running",
    )
}

/// The certificates on this host, and the one that was named.
fn certificates(common: &Common, here: &Here) -> Vec<Line> {
    let (server, member) = (here.places.server(), here.places.agent().join("member"));
    let mut files: Vec<(String, PathBuf)> = ["server", "controller", "person"]
        .into_iter()
        .map(|role| (role.to_owned(), server.join(format!("{role}.crt"))))
        .collect();
    files.push(("node".to_owned(), member.join("node.crt")));
    let context = server_dir(common);
    if context != server {
        // Of a context in use, or of a seed that is named by its own directory.
        let name = if context.join(KNOWN).exists() {
            "person"
        } else {
            "context"
        };
        files.push((name.to_owned(), context.join("person.crt")));
    }
    if let Some(cert) = &common.cert {
        files.push(("--cert".to_owned(), cert.clone()));
    }
    let now = membership::now().unix_seconds();
    let mut lines = Vec::new();
    for (name, file) in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        let check = format!("cert {name}");
        lines.push(match Certificate::from_pem(&text) {
            Ok(certificate) => judge_dates(check, certificate.validity(), now),
            Err(_) => Line::ok(
                check,
                format!(
                    "not made by Reeve: `openssl x509 -enddate -in {}` tells its end",
                    file.display()
                ),
            ),
        });
    }
    for dir in [context, server, member] {
        if let Ok(Some(bundle)) = Keep::beside(&dir).bundle() {
            for authority in bundle.authorities() {
                lines.push(judge_dates("authority".to_owned(), authority.validity(), now));
            }
            break;
        }
    }
    lines
}

fn judge_dates(check: String, validity: Validity, now: u64) -> Line {
    let (from, until) = (validity.from.unix_seconds(), validity.until.unix_seconds());
    let left = until.saturating_sub(now);
    let days = left / DAY;
    let told = if days > 0 {
        format!(
            "{} left",
            output::count(usize::try_from(days).unwrap_or(usize::MAX), "day")
        )
    } else {
        format!("{} left", output::short(left))
    };
    if now < from {
        Line::bad(check, "is not valid yet", "set this host's clock")
    } else if left == 0 {
        Line::bad(
            check,
            format!("ended on {}", validity.until),
            "start its program again: it asks for a new one; a node joins again with a token",
        )
    } else if left < until.saturating_sub(from) / 10 {
        Line::warn(
            check,
            format!("{told}, until {}", validity.until),
            "it should have been renewed by now: see its program's log",
        )
    } else {
        Line::ok(check, told)
    }
}

/// The seeds' ports and clocks.
async fn seeds(here: &Here) -> Vec<Line> {
    let (Some(seeds), Some(pin)) = (here.seeds(), here.authority()) else {
        return Vec::new();
    };
    let seen = match membership::look::seeds(pin, seeds).await {
        Ok(seen) => seen,
        Err(error) => return vec![Line::bad("seeds", error.to_string(), "see the program's log")],
    };
    let now = membership::now().unix_seconds();
    let mut lines = Vec::new();
    for (host, seed) in seen {
        let check = format!("seed {host}");
        match seed {
            Err(why) => lines.push(Line::bad(
                check,
                why,
                "see that its host is up, `reeve server` runs there, and port 2378 is open",
            )),
            Ok(state) => {
                lines.push(match state.stage {
                    Stage::Formed => Line::ok(check, "serves"),
                    Stage::Fresh | Stage::Starting => Line::warn(
                        check,
                        "is still coming together with the others",
                        "wait; its log says for whom it waits",
                    ),
                    Stage::Lost => Line::bad(
                        check,
                        "has lost its store",
                        "it takes its place again by itself while others have it",
                    ),
                });
                if let Some(clock) = state.clock {
                    lines.push(judge_clocks(format!("clock {host}"), clock, now));
                }
            }
        }
    }
    let shut = membership::look::shut_ports(seeds).await;
    lines.push(if shut.is_empty() {
        Line::ok("ports", "2379 and 2380 of all seeds are open from here")
    } else {
        let told: Vec<String> = shut.iter().map(|(place, why)| format!("{place}: {why}")).collect();
        Line::bad("ports", told.join("; "), "open 2378 to 2380 between all hosts")
    });
    lines
}

fn judge_clocks(check: String, theirs: u64, ours: u64) -> Line {
    let apart = theirs.abs_diff(ours);
    let word = if theirs > ours { "ahead of" } else { "behind" };
    let found = format!("{} {word} this host's", output::short(apart));
    let fix = "keep clocks right with NTP on both; no decision compares them, but certificates have dates";
    if apart > CLOCK_BAD {
        Line::bad(check, found, fix)
    } else if apart > CLOCK_WARN {
        Line::warn(check, found, fix)
    } else {
        Line::ok(check, "as this host's")
    }
}

#[cfg(test)]
mod tests {
    use membership::members::Health;
    use trust::validity::Time;

    use super::*;

    fn member(id: u64, health: Result<Health, String>) -> Seen {
        Seen {
            id: Some(id),
            name: format!("m{id}"),
            url: format!("https://10.0.0.{id}:2379"),
            peer: format!("https://10.0.0.{id}:2380"),
            health,
        }
    }

    fn well() -> Result<Health, String> {
        Ok(Health {
            version: "3.6.11".to_owned(),
            db_size_bytes: 1 << 20,
            leader: 1,
            ..Health::default()
        })
    }

    fn levels(seen: &[Seen]) -> (usize, usize) {
        let lines = judge_members(seen, USUAL_QUOTA_BYTES);
        assert!(
            lines.iter().all(|line| (line.level == Level::Ok) == line.fix.is_none()),
            "{lines:?}"
        );
        (check::count(&lines, Level::Bad), check::count(&lines, Level::Warn))
    }

    #[test]
    fn members_that_are_missing_are_worse_the_fewer_are_left() {
        let silent = || Err("no answer".to_owned());
        assert_eq!(
            levels(&[member(1, well()), member(2, well()), member(3, well())]),
            (0, 0)
        );
        assert_eq!(
            levels(&[member(1, well()), member(2, well()), member(3, silent())]),
            (1, 1)
        );
        assert_eq!(
            levels(&[member(1, well()), member(2, silent()), member(3, silent())]),
            (3, 0)
        );
        assert_eq!(levels(&[member(1, well()), member(2, well())]), (0, 1));
        let full = Ok(Health {
            db_size_bytes: USUAL_QUOTA_BYTES / 10 * 9,
            ..well().unwrap_or_default()
        });
        assert_eq!(levels(&[member(1, full)]), (1, 0));
    }

    #[test]
    fn a_store_with_known_faults_names_each_with_the_release_to_go_to() {
        let old = |version: &str| {
            Ok(Health {
                version: version.to_owned(),
                ..well().unwrap_or_default()
            })
        };
        let lines = judge_members(&[member(1, old("3.4.23"))], USUAL_QUOTA_BYTES);
        let faults: Vec<&Line> = lines.iter().filter(|line| line.check == "etcd 3.4.23").collect();
        assert!(
            faults.len() == 5 && faults.iter().all(|line| line.level == Level::Warn),
            "{lines:?}"
        );
        assert!(
            faults
                .iter()
                .all(|line| line.fix.as_deref().is_some_and(|fix| fix.contains("3.4.44"))),
            "{lines:?}"
        );
        assert_eq!(levels(&[member(1, old("3.5.1"))]).0, 1);
        // One alone, which says nothing of members, is the embedded store.
        let embedded = Seen {
            id: None,
            ..member(1, old("3.4.23"))
        };
        assert_eq!(levels(&[embedded]), (0, 0));
    }

    #[test]
    fn certificates_warn_in_the_last_tenth_of_their_life() {
        let validity = Validity {
            from: Time::from_unix_seconds(1_000 * DAY),
            until: Time::from_unix_seconds(1_100 * DAY),
        };
        let level = |day: u64| judge_dates("cert".to_owned(), validity, day * DAY).level;
        assert_eq!(
            [level(999), level(1_001), level(1_089), level(1_095), level(1_100)],
            [Level::Bad, Level::Ok, Level::Ok, Level::Warn, Level::Bad]
        );
    }

    #[test]
    fn clocks_are_reported_by_how_far_they_are_apart() {
        let line = |theirs| judge_clocks("clock".to_owned(), theirs, 1_000);
        assert_eq!(line(1_001).level, Level::Ok);
        assert_eq!(
            (line(990).level, line(990).found.as_str()),
            (Level::Warn, "10s behind this host's")
        );
        assert_eq!(line(1_100).level, Level::Bad);
    }

    #[test]
    fn versions_that_differ_are_told() {
        let of = |version: &str| BTreeMap::from([(version.to_owned(), vec!["n1".to_owned()])]);
        assert_eq!(judge_versions(&of(env!("CARGO_PKG_VERSION"))).level, Level::Ok);
        let old = judge_versions(&of("0.0.1-old"));
        assert!(
            old.level == Level::Warn && old.found.contains("0.0.1-old on n1"),
            "{old:?}"
        );
    }
}
