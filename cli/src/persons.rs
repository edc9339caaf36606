//! `reeve person`: who has a certificate of the cluster with which rights, and how somebody is shut out: by the authority's
//! list of the revoked, as a node is, on a seed or for an administrator elsewhere.

use std::path::Path;
use std::time::Duration;

use membership::believed::Believed;
use membership::keep::Keep;
use membership::persons::{self, Person};
use membership::revoke::Revoker;
use membership::tokens;
use runtime::Prefix;
use runtime::Store as _;
use schemas::keys::Key;
use serde_json::json;
use trust::identity::{Name, Rights, Subject};
use trust::token::{Admits, Names};

use crate::Verdict;
use crate::args::Common;
use crate::args::contexts::{PersonRmArgs, PersonVerb};
use crate::connect::{Connection, connect};
use crate::failure::{Exit, Failure};
use crate::nodes::not_shut_out;
use crate::output::{self, Cell, Format, Table, Tone, print};
use crate::seats::{NO_VOICE, failed, server_dir, voice};

/// How long the seeds may take to cut connections; what they have not done then they do when they can.
const CUT: Duration = Duration::from_secs(30);

/// `reeve person`.
pub async fn person(common: &Common, verb: &PersonVerb) -> Verdict {
    match verb {
        PersonVerb::Ls => list(common).await,
        PersonVerb::Rm(args) => rm(common, args).await,
    }
}

/// Everybody whom this cluster's seeds gave a certificate, as far as the authority's word in the store says.
async fn people(connection: &Connection, dir: &Path) -> Result<Vec<Person>, Failure> {
    let believed = Believed::on_disk(&Keep::beside(dir)).map_err(|error| failed(&error))?;
    let Some(mut believed) = believed else {
        return Err(Failure::new(
            Exit::Failed,
            "who may what is known to clusters of seeds, and to their hosts and people only",
        )
        .help("run it as root on a seed, or after `reeve login-cluster`; a store of your own has users of its own"));
    };
    let listing = connection
        .store
        .list(&Prefix::new(connection.root.prefix("trust"))?)
        .await?;
    let said = listing
        .kvs
        .iter()
        .filter_map(|kv| match connection.root.parse(&kv.key) {
            Some(Key::Trust(key)) => Some((key, &*kv.value)),
            Some(_) | None => None,
        });
    let _heard = believed.hear(said, membership::now());
    Ok(persons::list(&connection.store, &connection.root, believed.revoked()).await?)
}

/// Refuses a token with rights other than those that a person has: both would count.
pub async fn one_set_of_rights(
    connection: &Connection,
    dir: &Path,
    name: &Name,
    rights: &Rights,
) -> Result<(), Failure> {
    let known = people(connection, dir).await?;
    let now = membership::now();
    match known.iter().find(|one| one.name == *name && one.counts(now)) {
        Some(Person {
            rights: Some(found), ..
        }) if found != rights => Err(Failure::new(
            Exit::Conflict,
            format!("{name} has the rights `{found}`, and would keep them beside these"),
        )
        .help(format!("end those first: `reeve person rm {name}`"))),
        Some(_) | None => Ok(()),
    }
}

async fn list(common: &Common) -> Verdict {
    let connection = connect(common).await?;
    let people = people(&connection, &server_dir(common)).await?;
    let now = membership::now();
    let state = |person: &Person| match person.removed {
        Some(at) => (format!("removed at {at}"), Tone::Plain),
        None if now > person.until => (format!("ended at {}", person.until), Tone::Plain),
        None => (format!("until {}", person.until), Tone::Plain),
    };
    if common.output.is_for_machines() {
        let values: Vec<serde_json::Value> = people
            .iter()
            .map(|person| {
                let Person {
                    name,
                    rights,
                    until,
                    removed,
                } = person;
                json!({
                    "name": name, "rights": rights, "until": until.to_string(), "counts": person.counts(now),
                    "removed": removed.map(|at| at.to_string()),
                })
            })
            .collect();
        print(&match common.output {
            Format::Name => people
                .iter()
                .map(|person| format!("person/{}\n", person.name))
                .collect(),
            Format::Yaml => output::yaml(&json!(values)),
            Format::Json | Format::Table | Format::Wide => output::json(&json!(values)),
        });
        return Ok(Exit::Done);
    }
    if people.is_empty() {
        print("nobody has logged in; `reeve token create --person NAME --rights RIGHTS` prints a token for that\n");
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["NAME", "RIGHTS", "CERTIFICATE"]);
    for person in &people {
        let (word, tone) = state(person);
        let rights = person
            .rights
            .as_ref()
            .map_or_else(|| "-".to_owned(), ToString::to_string);
        table.row(vec![
            Cell::from(person.name.to_string()),
            Cell::from(rights),
            Cell::new(word, tone),
        ]);
    }
    print(&table.render(output::limit()));
    Ok(Exit::Done)
}

async fn rm(common: &Common, args: &PersonRmArgs) -> Verdict {
    let cannot = |error| not_shut_out("anybody", error);
    let connection = connect(common).await?;
    connection.marker().await?;
    let dir = server_dir(common);
    let Some(voice) = voice(common)? else {
        return Err(Failure::new(
            Exit::Failed,
            "only the cluster's authority can shut people out: on a seed, or for an administrator",
        )
        .help(NO_VOICE));
    };
    let revoker = Revoker::of(voice);
    let known = people(&connection, &dir).await?;
    for name in &args.names {
        if !known.iter().any(|person| person.name == *name) {
            return Err(
                Failure::new(Exit::Failed, format!("nobody called `{name}` has a certificate"))
                    .help("`reeve person ls` lists who has; root is the seeds' own"),
            );
        }
    }
    let names = args
        .names
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if !args.yes {
        if !output::can_ask() {
            return Err(Failure::usage(format!(
                "this would shut out {names}, and there is no terminal to ask on"
            ))
            .help("add --yes if that is meant"));
        }
        if !output::ask(&format!("Shut out {names}?")) {
            return Err(Failure::new(Exit::Failed, "not confirmed; nothing was changed"));
        }
    }
    let reason = args.note.as_deref().unwrap_or("removed with `reeve person rm`");
    let mut number = 0;
    for name in &args.names {
        let subject = Subject {
            role: trust::identity::Role::Person,
            name: name.clone(),
        };
        let revoked = revoker
            .revoke(&connection.store, &connection.root, &subject, reason)
            .await;
        number = revoked.map_err(cannot)?;
        withdraw_tokens(&connection, &dir, name).await;
    }
    let left = revoker.until_cut(number, CUT, None).await.map_err(cannot)?;
    if !left.is_empty() {
        let left: Vec<String> = left.iter().map(ToString::to_string).collect();
        return Err(Failure::new(
            Exit::TimedOut,
            format!(
                "no certificate of {names} counts any more, but these seeds have not said that they cut open connections: {}",
                left.join(", ")
            ),
        )
        .help("they do it when they are back; `reeve server` must run there"));
    }
    for name in &args.names {
        match common.output {
            Format::Table | Format::Wide => print(&format!(
                "person/{name} is shut out: no certificate of that name counts any more, open connections are cut\n"
            )),
            Format::Name => print(&format!("person/{name}\n")),
            Format::Json => print(&format!("{}\n", json!({ "kind": "Person", "name": name }))),
            Format::Yaml => print(&format!(
                "---\n{}",
                output::yaml(&json!({ "kind": "Person", "name": name }))
            )),
        }
    }
    Ok(Exit::Done)
}

/// A token that was made for somebody and not used yet would let that one in again.
async fn withdraw_tokens(connection: &Connection, dir: &Path, name: &Name) {
    let listed = tokens::list(dir, &connection.store, &connection.root)
        .await
        .unwrap_or_default();
    for (id, record) in listed {
        let for_them = record.is_ok_and(|record| {
            matches!(record.admits, Admits::Person(_))
                && matches!(&record.names, Names::Only(names) if names.contains(name))
        });
        if for_them && let Err(error) = tokens::withdraw(&connection.store, &connection.root, id).await {
            output::complain(&format!(
                "warning: token {id} was made for {name} and is not withdrawn ({error}): `reeve token rm {id}`\n"
            ));
        }
    }
}
