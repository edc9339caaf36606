//! What `reeve doctor` says of a cluster of seeds as one: whether its authority is being replaced and whom that waits for, whose
//! certificates come to their end, and whether the store's members are the seeds.

use std::collections::BTreeMap;

use membership::etcd::peer_url;
use membership::issued::Issued;
use membership::members::Seen;
use membership::rotator::{Picture, Rotator, Stage};
use membership::seeds::Seeds;
use membership::voice::Voice;
use runtime::{Prefix, Store as _};
use schemas::keys::Key;
use trust::validity::Time;

use super::check::Line;
use crate::connect::Connection;
use crate::output;
use crate::rotate::{advice, sentence, waits_for};
use crate::view::View;

/// How many are named of those that something waits for.
const NAMED: usize = 8;

/// The authority, and the certificates of nodes.
pub async fn lines(connection: &Connection, asks: Voice) -> Vec<Line> {
    let looked = Rotator::of(asks).look(&connection.store, &connection.root).await;
    let mut lines = match looked {
        Ok(picture) => judge_rotation(&picture),
        Err(error) => vec![Line::warn(
            "rotation",
            format!("cannot be looked at: {}", runtime::chain(&error)),
            "run it on a seed, as root",
        )],
    };
    lines.extend(certificates(connection).await);
    lines
}

/// Whether the authority is being replaced, and what keeps that from its end.
fn judge_rotation(picture: &Picture) -> Vec<Line> {
    let stage = picture.stage();
    if stage == Stage::Rests {
        return vec![Line::ok("rotation", "none: one authority is believed, and no other")];
    }
    let mut lines = vec![Line::warn(
        "rotation",
        sentence(picture, stage),
        "it goes on by itself; `reeve admin rotate-authority` on a seed follows it",
    )];
    let waiting = waits_for(picture);
    let more = waiting.len().saturating_sub(NAMED);
    for who in waiting.into_iter().take(NAMED) {
        let fix = match who.strip_prefix("node/") {
            Some(node) => {
                format!("bring it back; or leave it behind: `reeve admin rotate-authority --without {node}`")
            }
            None if who.contains(" answer") => advice(picture).unwrap_or_default(),
            None => "wait; its log says more".to_owned(),
        };
        lines.push(Line::warn("rotation", format!("waits for {who}"), fix));
    }
    if more > 0 {
        lines.push(Line::warn(
            "rotation",
            format!("and for {more} more"),
            "`reeve admin rotate-authority --status -o json` names all",
        ));
    }
    lines
}

/// The certificates of nodes that are in the cluster, by the notes that seeds keep.
async fn certificates(connection: &Connection) -> Vec<Line> {
    let prefix = format!("{}node/", connection.root.prefix("issued"));
    let listed = async {
        let listing = connection.store.list(&Prefix::new(prefix)?).await?;
        let view = View::read(connection, &["nodes", "cordons"]).await?;
        Ok::<_, crate::failure::Failure>((listing, view))
    };
    let (listing, view) = match listed.await {
        Ok(found) => found,
        Err(failure) => {
            return vec![Line::warn(
                "node certs",
                format!("cannot be looked at: {}", failure.sentence()),
                "run it on a seed, as root",
            )];
        }
    };
    let notes = listing
        .kvs
        .iter()
        .filter_map(|kv| match connection.root.parse(&kv.key) {
            Some(Key::Issued(subject, _)) => {
                let node = subject.strip_prefix("node/")?.to_owned();
                Some((node, Issued::of_json(&kv.value)?))
            }
            Some(_) | None => None,
        });
    let here = view.facts.keys().map(ToString::to_string).collect::<Vec<_>>();
    judge_nodes(notes, &here, membership::now())
}

fn judge_nodes(notes: impl Iterator<Item = (String, Issued)>, nodes: &[String], now: Time) -> Vec<Line> {
    let mut longest: BTreeMap<String, Issued> = BTreeMap::new();
    for (node, note) in notes.filter(|(node, _)| nodes.contains(node)) {
        match longest.get(&node) {
            Some(known) if known.until >= note.until => {}
            Some(_) | None => drop(longest.insert(node, note)),
        }
    }
    let count = longest.len();
    let mut lines: Vec<Line> = longest
        .into_iter()
        .filter_map(|(node, note)| {
            let (from, until) = (note.from.unix_seconds(), note.until.unix_seconds());
            let left = until.saturating_sub(now.unix_seconds());
            let check = format!("cert {node}");
            if left == 0 {
                Some(Line::bad(
                    check,
                    format!("ended on {}: the store lets the node in no more", note.until),
                    format!("on a seed, `reeve token create --node {node}`; start its agent with that token"),
                ))
            } else if left < until.saturating_sub(from) / 10 {
                Some(Line::warn(
                    check,
                    format!("{} left: it should have been renewed by now", output::short(left)),
                    "see its agent's log: can it reach port 2378 of the seeds?",
                ))
            } else {
                None
            }
        })
        .collect();
    if lines.is_empty() && count > 0 {
        lines.push(Line::ok(
            "node certs",
            format!("{} far from their end", output::count(count, "certificate")),
        ));
    }
    lines
}

/// Whether the store's members are the seeds, no more and no fewer. Nothing where it is another store than the seeds'.
pub fn judge_seats(seen: &[Seen], seeds: &Seeds) -> Vec<Line> {
    let is = |one: &Seen| seeds.iter().any(|host| peer_url(host) == one.peer);
    if !seen.iter().any(is) {
        return Vec::new();
    }
    let missing = seeds
        .iter()
        .filter(|host| seen.iter().all(|one| one.peer != peer_url(host)));
    let mut lines: Vec<Line> = missing
        .map(|host| {
            Line::bad(
                format!("member {host}"),
                "this seed is no member of the store",
                format!(
                    "start `reeve server` there: it takes its place; where its disk is gone, with a token of `reeve token create \
                     --seed {host}`"
                ),
            )
        })
        .collect();
    for one in seen.iter().filter(|one| !is(one)) {
        let id = one.id.unwrap_or_default();
        lines.push(Line::warn(
            format!("member {}", one.peer),
            "is none of the seeds",
            format!("where nobody knows it, take it out: `etcdctl member remove {id:x}`"),
        ));
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use membership::rotate::Awaited;
    use membership::rotation::{Authorities, Standing};
    use trust::key::Fingerprint;

    use super::super::check::{Level, count};
    use super::*;

    const OLD: Fingerprint = Fingerprint::from_bytes([1; 32]);
    const NEW: Fingerprint = Fingerprint::from_bytes([2; 32]);

    #[test]
    fn a_rotation_is_told_with_everybody_it_waits_for() {
        let standing = Standing {
            believes: 3,
            anchored: 3,
            holds: BTreeSet::from([OLD, NEW]),
            shows: Some(OLD),
        };
        let mut picture = Picture {
            authorities: Authorities {
                number: 3,
                next: None,
                present: NEW,
                former: vec![OLD],
            },
            seeds: BTreeMap::from([
                ("10.0.0.1".parse().unwrap(), Ok(standing)),
                (
                    "10.0.0.2".parse().unwrap(),
                    Err("10.0.0.2:2378 does not answer".to_owned()),
                ),
            ]),
            awaited: Awaited {
                needed: BTreeSet::from(["node/n4".to_owned()]),
                people: BTreeSet::new(),
            },
        };
        let lines = judge_rotation(&picture);
        let told: Vec<&str> = lines.iter().map(|line| line.found.as_str()).collect();
        assert!(
            told[0].contains("issues from now on") && told[1].contains("10.0.0.2:2378 does not answer"),
            "{told:?}"
        );
        assert_eq!(told[2], "waits for node/n4");
        assert!(lines[1].fix.as_deref().unwrap().contains("--seed"), "{lines:?}");
        assert!(lines[2].fix.as_deref().unwrap().contains("--without n4"), "{lines:?}");
        picture.authorities.former.clear();
        picture.authorities.number = 1;
        assert_eq!(count(&judge_rotation(&picture), Level::Ok), 1);
    }

    #[test]
    fn a_nodes_certificate_is_told_when_it_has_ended_or_should_have_been_renewed() {
        let at = Time::from_unix_seconds;
        let note = |node: &str, from, until| {
            let issued = Issued {
                from: at(from),
                until: at(until),
                issuer: None,
                held: false,
                rights: None,
            };
            (node.to_owned(), issued)
        };
        let notes = [
            note("n1", 0, 1_000),
            note("n1", 500, 5_000),
            note("n2", 0, 1_000),
            note("n3", 0, 1_050),
            note("gone", 0, 10),
        ];
        let nodes = ["n1", "n2", "n3"].map(str::to_owned);
        let lines = judge_nodes(notes.into_iter(), &nodes, at(1_010));
        let told: Vec<(Level, &str)> = lines.iter().map(|line| (line.level, line.check.as_str())).collect();
        assert_eq!(told, [(Level::Bad, "cert n2"), (Level::Warn, "cert n3")]);
        let lines = judge_nodes([note("n1", 500, 5_000)].into_iter(), &nodes, at(1_010));
        assert_eq!(count(&lines, Level::Ok), 1);
    }

    #[test]
    fn a_seed_that_is_no_member_and_a_member_that_is_no_seed_are_told() {
        let seeds: Seeds = "10.0.0.1,10.0.0.2,10.0.0.3".parse().unwrap();
        let seen = |last: u8| Seen {
            id: Some(u64::from(last)),
            name: String::new(),
            url: String::new(),
            peer: format!("https://10.0.0.{last}:2380"),
            health: Err("it has not begun".to_owned()),
        };
        assert!(judge_seats(&[seen(1), seen(2), seen(3)], &seeds).is_empty());
        let lines = judge_seats(&[seen(1), seen(2), seen(9)], &seeds);
        let told: Vec<&str> = lines.iter().map(|line| line.check.as_str()).collect();
        assert_eq!(told, ["member 10.0.0.3", "member https://10.0.0.9:2380"]);
        // Another store than the seeds'.
        assert!(judge_seats(&[seen(9)], &seeds).is_empty());
    }
}
