//! `reeve admin rotate-authority`: has the cluster's authority replaced, follows that, and tells whom it waits for. The seeds do
//! it by themselves, whether anybody follows or not; `membership::rotation` decides, this tells.

use std::time::Duration;

use membership::revoke::Revoker;
use membership::rotate::short;
use membership::rotation::Standing;
use membership::rotator::{Picture, RotateError, Rotator, Stage};
use membership::voice::Voice;
use runtime::Shutdown;
use schemas::names::NodeName;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use trust::identity::Subject;

use crate::Verdict;
use crate::args::Common;
use crate::args::authority::RotateArgs;
use crate::connect::{Connection, connect};
use crate::daemons::signals;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, print};
use crate::seats::{asks, failed, of_ask, voice};

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How many are named of those that are waited for.
const NAMED: usize = 8;

pub async fn rotate(common: &Common, args: &RotateArgs) -> Verdict {
    let connection = connect(common).await?;
    let voice = if args.status {
        asks(common)?
    } else {
        voice(common)?.filter(|voice| voice.own().is_some())
    };
    let Some(voice) = voice else {
        return Err(
            Failure::new(Exit::Failed, "this host is no seed, and only seeds have the authority")
                .help("run it on a seed, as root; its --data-dir is the one of `reeve server`"),
        );
    };
    let rotator = Rotator::of(voice.clone());
    if args.withdraw {
        let withdrawn = rotator.withdraw(&connection.store, &connection.root).await;
        let pin = short(&withdrawn.map_err(|error| of(&error))?);
        say(
            common,
            &format!("authority {pin} is taken back; the seeds' stores start without it\n"),
        );
        return Ok(Exit::Done);
    }
    let picture = look(&rotator, &connection).await?;
    if args.status {
        show(common, &picture);
        return Ok(Exit::Done);
    }
    let rests = picture.stage() == Stage::Rests;
    if rests {
        confirm(common, args, &picture)?;
    }
    // From here on Ctrl-C ends the watching, and not the command in the middle of something.
    let shutdown = signals()?;
    if rests {
        let begun = rotator.begin(&connection.store, &connection.root).await;
        if let Some(pin) = begun.map_err(|error| of(&error))? {
            say(common, &format!("authority {} is announced\n", short(&pin)));
        }
    } else {
        say(common, "the authority is being replaced already; this follows it\n");
    }
    if args.no_wait {
        say(
            common,
            "it goes on by itself; `reeve admin rotate-authority --status` tells how far it is\n",
        );
        return Ok(Exit::Done);
    }
    follow(common, args, (&rotator, voice), &connection, &shutdown).await
}

fn say(common: &Common, text: &str) {
    if !common.output.is_for_machines() {
        print(text);
    }
}

async fn look(rotator: &Rotator, connection: &Connection) -> Result<Picture, Failure> {
    let looked = rotator.look(&connection.store, &connection.root).await;
    looked.map_err(|error| of(&error))
}

fn of(error: &RotateError) -> Failure {
    match error {
        RotateError::Store(error) => Failure::from(error.clone()),
        RotateError::NotBegun => failed(error).help("does `reeve server` run here? See its log"),
        RotateError::Issues => failed(error).help("let it come to its end; then it can be replaced again"),
        RotateError::Conflict
        | RotateError::Keep(_)
        | RotateError::Step(_)
        | RotateError::Authority(_)
        | RotateError::Bundle(_)
        | RotateError::NothingAnnounced => failed(error),
        RotateError::Ask(error) => of_ask(error),
    }
}

fn confirm(common: &Common, args: &RotateArgs, picture: &Picture) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !output::can_ask() {
        return Err(Failure::usage(
            "this replaces the cluster's authority and every certificate, and there is no terminal to ask on",
        )
        .help("add --yes if that is meant"));
    }
    let stores = if picture.seeds.len() == 1 {
        "The store is away for some seconds, twice; with three seeds it would not be."
    } else {
        "The seeds' stores start again one after the other, twice."
    };
    say(
        common,
        &format!(
            "A new authority takes the place of {}. Every host gets a new\ncertificate; tokens made before count no more; no container and no agent is\nrestarted. {stores}\n",
            short(&picture.authorities.present)
        ),
    );
    for (host, why) in { &picture.seeds }
        .iter()
        .filter_map(|(host, said)| Some((host, said.as_ref().err()?)))
    {
        say(
            common,
            &folded(&format!(
                "The seed {host} is away, and all of it waits for that one: {why}"
            )),
        );
    }
    if output::ask("Replace the authority?") {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "not confirmed; nothing was changed"))
    }
}

async fn follow(
    common: &Common,
    args: &RotateArgs,
    (rotator, voice): (&Rotator, Voice),
    connection: &Connection,
    shutdown: &Shutdown,
) -> Verdict {
    let revoker = Revoker::of(voice);
    let began = Instant::now();
    let mut told: Option<(Stage, Vec<String>)> = None;
    let mut left = args.without.clone();
    let mut about = None;
    loop {
        let mut last = None;
        // Certificates are replaced under us.
        let looked = async {
            connection.store.reread_tls().await?;
            look(rotator, connection).await
        };
        let looked = tokio::select! {
            looked = looked => looked,
            () = shutdown.draining() => return Err(interrupted()),
        };
        match looked {
            Ok(picture) => {
                let stage = picture.stage();
                about.clone_from(&advice(&picture));
                if stage == Stage::Promoted {
                    leave(common, connection, &revoker, &picture, &mut left).await?;
                }
                let waiting = waits_for(&picture);
                tell(common, &picture, told.as_ref(), stage, &waiting);
                told = Some((stage, waiting));
                if stage == Stage::Rests {
                    done(common, &picture);
                    return Ok(Exit::Done);
                }
            }
            // A store that starts again may keep one look from succeeding.
            Err(failure) => last = Some(failure),
        }
        if began.elapsed() >= args.timeout {
            return Err(too_long(args, last, told, about));
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = shutdown.draining() => return Err(interrupted()),
        }
    }
}

fn interrupted() -> Failure {
    Failure::new(
        Exit::Failed,
        "no longer waiting; the authority is replaced all the same",
    )
    .help("run `reeve admin rotate-authority` again to follow it")
}

/// What to do about seeds that are away: nothing goes on without them.
pub fn advice(picture: &Picture) -> Option<String> {
    let silent = picture.seeds.iter().filter(|(_, said)| said.is_err());
    let silent: Vec<String> = silent.map(|(host, _)| host.to_string()).collect();
    let first = silent.first()?;
    let back = if picture.authorities.next.is_some() {
        ", or take the new authority back with `reeve admin rotate-authority --withdraw`"
    } else {
        ""
    };
    Some(format!(
        "bring {} back, for every seed is needed; replace one that is gone for good (`reeve token create --seed {first}`){back}",
        silent.join(" and ")
    ))
}

fn too_long(
    args: &RotateArgs,
    last: Option<Failure>,
    told: Option<(Stage, Vec<String>)>,
    about: Option<String>,
) -> Failure {
    if let Some(failure) = last {
        return failure.detail("the authority is not replaced yet");
    }
    let time = output::short(args.timeout.as_secs());
    let failure = Failure::new(Exit::TimedOut, format!("the authority is not replaced after {time}"));
    let waiting = told.map(|(_, waiting)| waiting).unwrap_or_default();
    let node = waiting.iter().find_map(|who| who.strip_prefix("node/"));
    let help = match node {
        _ if about.is_some() => about.unwrap_or_default(),
        Some(node) => format!(
            "it goes on by itself, when they are back; or leave them behind:\n`reeve admin rotate-authority --without {node}`"
        ),
        None => "it goes on by itself; run it again to follow it".to_owned(),
    };
    waiting
        .into_iter()
        .take(NAMED)
        .fold(failure, Failure::detail)
        .help(help)
}

/// Shuts those out who are not waited for.
async fn leave(
    common: &Common,
    connection: &Connection,
    revoker: &Revoker,
    picture: &Picture,
    left: &mut Vec<NodeName>,
) -> Result<(), Failure> {
    let awaited = |node: &NodeName| picture.awaited.needed.contains(&format!("node/{node}"));
    let (now, later): (Vec<NodeName>, Vec<NodeName>) = left.drain(..).partition(awaited);
    *left = later;
    let cannot = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(Exit::Failed, "cannot leave the nodes behind").because(error)
    };
    for node in now {
        let Ok(subject) = format!("node/{node}").parse::<Subject>() else {
            continue;
        };
        let why = "left behind when the authority was replaced";
        revoker
            .revoke(&connection.store, &connection.root, &subject, why)
            .await
            .map_err(|error| cannot(&error))?;
        say(
            common,
            &format!("node/{node} is left behind; what runs there goes on, and a new token lets it in again\n"),
        );
    }
    Ok(())
}

/// What a seed still lacks.
fn lacks(picture: &Picture, said: &Result<Standing, String>) -> Option<String> {
    let authorities = &picture.authorities;
    let standing = match said {
        Ok(standing) => standing,
        Err(why) => return Some(why.clone()),
    };
    let why = if standing.believes < authorities.number {
        "has not heard of it yet"
    } else if authorities.next.is_some_and(|next| !standing.holds.contains(&next)) {
        "has no key of it yet"
    } else if standing.anchored < authorities.number {
        "its store is to start again"
    } else if picture.stage() == Stage::Serving && standing.shows != Some(authorities.present) {
        "shows a certificate of the former one"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// Whom it waits for, each with why.
pub fn waits_for(picture: &Picture) -> Vec<String> {
    let seeds = picture.seeds.iter().filter_map(|(host, said)| {
        let why = lacks(picture, said)?;
        let known = why.starts_with(host.as_str());
        Some(if known { why } else { format!("{host}: {why}") })
    });
    let awaited = picture.awaited.needed.iter().cloned();
    if picture.stage() == Stage::Rests {
        Vec::new()
    } else {
        seeds.chain(awaited).collect()
    }
}

/// How far it is.
pub fn sentence(picture: &Picture, stage: Stage) -> String {
    let present = short(&picture.authorities.present);
    match stage {
        Stage::Rests => format!("authority {present} issues, and no other is believed"),
        Stage::Announced => {
            let next = picture.authorities.next.as_ref().map(short).unwrap_or_default();
            format!("authority {next} is believed beside {present}, which issues")
        }
        Stage::Promoted => format!("authority {present} issues from now on; nodes renew their certificates"),
        Stage::Serving => "every node has its new certificate; the seeds show theirs".to_owned(),
        Stage::Forgotten => "the former authority is forgotten; the seeds' stores start again without it".to_owned(),
    }
}

fn waiting_lines(waiting: &[String]) -> String {
    let more = waiting.len().saturating_sub(NAMED);
    let mut text: String = waiting
        .iter()
        .take(NAMED)
        .map(|who| format!("  waiting for {who}\n"))
        .collect();
    if more > 0 {
        text.push_str(&format!("  and for {more} more\n"));
    }
    text
}

/// Under the lines of those that are waited for.
fn folded(text: &str) -> String {
    let room = output::width().saturating_sub(2);
    let lines = output::wrap(text, room);
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

fn tell(common: &Common, picture: &Picture, before: Option<&(Stage, Vec<String>)>, stage: Stage, waiting: &[String]) {
    let (was, said) = before.map_or((None, [].as_slice()), |(was, said)| (Some(*was), said.as_slice()));
    if was != Some(stage) {
        say(common, &format!("{}\n", sentence(picture, stage)));
    }
    if said != waiting {
        say(common, &waiting_lines(waiting));
        if let Some(about) = advice(picture)
            && stage != Stage::Rests
        {
            say(common, &folded(&about));
        }
    }
}

fn done(common: &Common, picture: &Picture) {
    if common.output.is_for_machines() {
        show(common, picture);
        return;
    }
    print("what the former one issued is refused; further hosts join with `reeve token create`\n");
    if !picture.awaited.people.is_empty() {
        let people: Vec<&str> = picture.awaited.people.iter().map(String::as_str).collect();
        print(&format!("these people log in again: {}\n", people.join(", ")));
    }
}

fn show(common: &Common, picture: &Picture) {
    let stage = picture.stage();
    let waiting = waits_for(picture);
    let value: Value = json!({
        "authority": picture.authorities.present,
        "announced": picture.authorities.next,
        "former": picture.authorities.former,
        "stage": match stage {
            Stage::Rests => "rests",
            Stage::Announced => "announced",
            Stage::Promoted => "promoted",
            Stage::Serving => "serving",
            Stage::Forgotten => "forgotten",
        },
        "waitingFor": waiting,
    });
    match common.output {
        Format::Json => print(&output::json(&value)),
        Format::Yaml => print(&output::yaml(&value)),
        Format::Name => print(&format!("{}\n", picture.authorities.present)),
        Format::Table | Format::Wide => {
            print(&format!("{}\n{}", sentence(picture, stage), waiting_lines(&waiting)));
            if let Some(about) = advice(picture).filter(|_| stage != Stage::Rests) {
                print(&folded(&about));
            }
        }
    }
}
