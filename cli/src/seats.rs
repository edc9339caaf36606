//! Hosts of one's own: `reeve server` runs a seed with its controller, `reeve token` makes what others join with, and an
//! agent that is given seeds joins before it starts. The crate `membership` does it; here it is asked and told.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use controller::ControllerOptions;
use membership::believed::Believed;
use membership::front::FrontError;
use membership::join::{JoinError, join, join_token, joined, lines};
use membership::keep::{Context, Keep, KeepError};
use membership::renew::Membership;
use membership::seed::{self, Formed, Progress, SeedError, SeedOptions};
use membership::seeds::{Host, Seeds};
use membership::signing;
use membership::tokens::{self, TokensError};
use membership::voice::{AskError, Voice};
use runtime::Shutdown;
use schemas::keys::Root;
use schemas::names::NodeName;
use serde_json::json;
use trust::authority::MAX_LIFETIME_SECONDS;
use trust::identity::{Name, Role, Who};
use trust::tls::Door;
use trust::token::{Admits, InstallToken, Names, Token};

use crate::Verdict;
use crate::args::Common;
use crate::args::seats::{ServerArgs, TokenArgs, TokenCreateArgs, TokenVerb};
use crate::connect::{SERVER_DIR, connect};
use crate::contexts::{self, Chosen};
use crate::daemons::{of_controller, signals};
use crate::failure::{Exit, Failure};
use crate::logging;
use crate::output::{self, Cell, Format, Table, complain, print};
use crate::persons;
use crate::sealing;

/// No token is longer.
const MAX_TOKEN_BYTES: u64 = 4_096;
/// A certificate's life: long enough to be renewed at a third of it, and no longer than the authority allows.
const LEAST_LIFE: Duration = Duration::from_secs(60);
const MOST_LIFE: Duration = Duration::from_secs(MAX_LIFETIME_SECONDS);
/// How many are named of those who joined with one token.
const FEW: usize = 3;
const MAX_TTL: Duration = Duration::from_secs(30 * 86_400);

pub fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    let failure = Failure::new(Exit::Failed, error.to_string());
    match error.source() {
        Some(source) => failure.because(source),
        None => failure,
    }
}

/// The token in the file that was named; None where none was.
pub fn token(args: &TokenArgs) -> Result<Option<Token>, Failure> {
    let Some(file) = &args.token_file else { return Ok(None) };
    let mut text = String::new();
    let place = file.display();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().take(MAX_TOKEN_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::usage(format!("--token-file: cannot read {place}")).because(&error))?;
    let token: Token = text.trim().parse().map_err(|error: trust::token::TokenError| {
        Failure::usage(format!("--token-file: {place} holds no token"))
            .because(&error)
            .help("`reeve token install` prints one for a new cluster, `reeve token create` one for this")
    })?;
    Ok(Some(token))
}

/// Which seed this host is.
pub fn myself(seeds: &Seeds, told: Option<&Host>) -> Result<Host, Failure> {
    if let Some(told) = told {
        return if seeds.contains(told) {
            Ok(told.clone())
        } else {
            Err(Failure::usage(format!("--host {told} is none of the seeds {seeds}"))
                .help("write it as it is written in --seeds"))
        };
    }
    match seeds.here().as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Failure::usage(format!("none of the seeds {seeds} is this host"))
            .help("run `reeve agent` on hosts that are no seeds; or say with --host which one this is")),
        several => {
            let several: Vec<String> = several.iter().map(ToString::to_string).collect();
            Err(
                Failure::usage(format!("several of the seeds are this host: {}", several.join(", ")))
                    .help("say with --host which one this is"),
            )
        }
    }
}

/// Who is missed, a line each.
pub fn missing(hosts: &BTreeMap<Host, String>) -> String {
    lines(hosts).iter().map(|line| format!("  {line}\n")).collect()
}

fn tell(progress: &Progress) {
    match progress {
        Progress::Missing(hosts) => {
            let count = output::count(hosts.len(), "seed");
            complain(&format!(
                "waiting for {count}; a new cluster begins when all are there\n{}",
                missing(hosts)
            ));
        }
        Progress::Lost(hosts) => complain(&format!(
            "this seed has no store of the cluster: waiting for one that has it\n{}",
            missing(hosts)
        )),
        Progress::Seat(hosts) => {
            complain(&format!(
                "waiting for another seed to give this one its seat\n{}",
                missing(hosts)
            ));
        }
        Progress::Beginning => complain("all seeds are there: the store begins\n"),
        Progress::TakingPlace(host) => {
            complain(&format!(
                "the cluster is there: taking this seed's place in it again, through {host}\n"
            ));
        }
        Progress::NoPlace(why) => complain(&format!("  {why}\n")),
        Progress::Quorum(None) => complain("waiting for a quorum of the store's members\n"),
        Progress::Quorum(Some(why)) => complain(&format!("the store does not run: {why}\n")),
    }
}

fn of_seed(error: &SeedError, me: &Host) -> Failure {
    let failure = failed(error);
    let seat = || {
        format!(
            "on another seed, `reeve token create --seed {me}` prints a token for this host: move its data directory away and \
             start again with that"
        )
    };
    match error {
        SeedError::NoToken => failure.help(format!(
            "name the file of the token with --token-file; `reeve token install` prints one for a new cluster, `reeve token \
             create --seed {me}` on another seed one for this"
        )),
        SeedError::OtherCluster { .. } => failure.help(
            "use the token that this host was installed with; or remove its data directory, when that cluster is gone for good",
        ),
        SeedError::OtherSeeds { .. } => failure.help("give --seeds as when it was installed"),
        SeedError::Strangers(hosts) if hosts.values().any(|why| why == seed::LEFT) => failure.help(seat()),
        SeedError::NoKey(_) => failure.help(seat()),
        SeedError::Seat(JoinError::Refused { reason, .. }) if reason.contains(" answers: ") => {
            failure.help("stop the old host for good, or give it another address; then start this one again")
        }
        SeedError::Seat(JoinError::Refused { .. }) => {
            failure.help(format!("on another seed, `reeve token create --seed {me}` prints a new token"))
        }
        SeedError::Seat(JoinError::OtherSeeds { .. }) => failure.help("give --seeds as on the other seeds"),
        SeedError::Seat(JoinError::Alone) => failure.help(
            "start it with the token that it was installed with: with its disk the cluster is gone, and a new one begins",
        ),
        SeedError::Seat(error) => of_join(error),
        SeedError::Strangers(_) => {
            failure.help("see that all seeds have the same token and the same --seeds, and that the addresses are theirs")
        }
        SeedError::Listen(_) | SeedError::Front(FrontError::Listen(_)) => failure.help("is another `reeve server` running here, or the address not this host's?"),
        SeedError::OtherStore { .. } => failure.help("another program wrote it: look at it with etcdctl"),
        SeedError::Gone { .. } => failure.help(
            "bring back a snapshot with `etcdctl snapshot restore`; or, to begin a new cluster, empty the data directory of every seed",
        ),
        SeedError::Keep(_)
        | SeedError::Endorse(_)
        | SeedError::Front(_)
        | SeedError::Authority(_)
        | SeedError::Show(_)
        | SeedError::Tls(_)
        | SeedError::Store(_)
        | SeedError::Client(_)
        | SeedError::Ended => failure,
    }
}

/// `reeve server`.
pub async fn server(common: &Common, args: &ServerArgs) -> Verdict {
    logging::start(&args.log.log, args.log.log_format)?;
    if common.etcd.is_some() && std::env::var_os("REEVE_ETCD").is_none() {
        return Err(
            Failure::usage("`reeve server` runs a store of its own; --etcd is not for it")
                .help("on a store of yours, run `reeve controller`"),
        );
    }
    let shutdown = signals()?;
    let dir = own_dir(common);
    let token = match &args.token.token_file {
        // Once this host is a seed, its token may be gone.
        Some(file) if dir.join(seed::KNOWN).exists() && !file.exists() && file.as_os_str() != "-" => None,
        Some(_) | None => token(&args.token)?,
    };
    if args.certificate_life < LEAST_LIFE || args.certificate_life > MOST_LIFE {
        return Err(Failure::usage("--certificate-life is from 1m to 400d"));
    }
    let me = myself(&args.seeds, args.host.as_ref())?;
    // Told before anything waits for it.
    if !args.etcd_program.is_file() {
        let program = args.etcd_program.display();
        return Err(
            Failure::new(Exit::Failed, format!("the store's program is missing: {program}"))
                .help("install it (Debian: `apt install etcd-server`), or name another with --etcd-program"),
        );
    }
    let options = SeedOptions {
        dir: dir.clone(),
        root: common.prefix.clone(),
        token,
        seeds: args.seeds.clone(),
        me: me.clone(),
        etcd: args.etcd_program.clone(),
        life: args.certificate_life.as_secs(),
    };
    let formed = match seed::start(options, &shutdown, tell).await {
        Ok(formed) => formed,
        Err(SeedError::Ended) => {
            print("reeve server has ended before the cluster was there\n");
            return Ok(Exit::Done);
        }
        Err(error) => return Err(of_seed(&error, &me)),
    };
    print(&greeting(&formed, &me, &dir, args));
    let ended = run_controller(common, args, &formed, &me, &shutdown).await;
    formed.end().await;
    ended
}

async fn run_controller(
    common: &Common,
    args: &ServerArgs,
    formed: &Formed,
    me: &Host,
    shutdown: &Shutdown,
) -> Verdict {
    let id = format!("{}-{}", me.label(), std::process::id());
    let mut options = ControllerOptions::new(formed.store.clone(), common.prefix.clone(), id);
    options.http_addr = Some(args.metrics);
    options.advertise = args.advertise.clone();
    let signing = signing::follow(&own_dir(common)).map_err(|error| failed(&error))?;
    options.signing = Some(signing);
    options.vault = Some(sealing::seed(&own_dir(common))?);
    let run = controller::run(options, shutdown.clone());
    tokio::select! {
        ended = run => ended.map_err(|error| of_controller(&error))?,
        () = shutdown.aborting() => {}
    }
    Ok(Exit::Done)
}

fn greeting(formed: &Formed, me: &Host, dir: &Path, args: &ServerArgs) -> String {
    let what = if formed.new {
        "a new cluster"
    } else {
        "the cluster is there"
    };
    let dir_flag = if dir == Path::new(SERVER_DIR) {
        String::new()
    } else {
        format!(" --data-dir {}", dir.display())
    };
    format!(
        "reeve {version} serves: {what}
  cluster   {cluster}
  seed      {me} of {seeds}
  data      {dir}
  metrics   http://{metrics}/metrics

On this host, as root, verbs find the cluster: reeve get nodes{dir_flag}
On every host that is to run containers:
  reeve agent --seeds {seeds} --token-file token
",
        version = env!("CARGO_PKG_VERSION"),
        cluster = formed.cluster,
        seeds = args.seeds,
        dir = dir.display(),
        metrics = args.metrics,
    )
}

pub fn of_join(error: &JoinError) -> Failure {
    let failure = failed(error);
    match error {
        JoinError::OtherIdentity { .. } => {
            failure.help("start it under its own name with --node, or give it another --data-dir")
        }
        JoinError::OtherCluster { .. } => {
            failure.help("give it another --data-dir to join another cluster; what runs here belongs to the first")
        }
        JoinError::Refused { .. } => failure.help("on a seed, `reeve token create` prints a new token"),
        JoinError::Strangers(_) => failure.help("see that token and --seeds are of one cluster"),
        JoinError::Keep(KeepError::InUse { .. }) => failure.help("an agent runs here already"),
        JoinError::Keep(_)
        | JoinError::OtherSeeds { .. }
        | JoinError::Alone
        | JoinError::NotJoined
        | JoinError::Show(_)
        | JoinError::Token(_)
        | JoinError::Certificate { .. }
        | JoinError::Authorities { .. }
        | JoinError::Tls(_) => failure,
    }
}

/// Makes sure that this host's agent belongs to the cluster; how it reaches the store, and what keeps its directory.
pub async fn agent_joins(
    node: &NodeName,
    seeds: &Seeds,
    root: &Root,
    args: &TokenArgs,
    data_dir: &Path,
    shutdown: &Shutdown,
) -> Result<(Context, Arc<Keep>), Failure> {
    let name: Name = node
        .as_str()
        .parse()
        .map_err(|error: trust::identity::IdentityError| Failure::usage(format!("--node {node}")).because(&error))?;
    let who = Who::Node(name);
    let keep = Keep::open(&data_dir.join("member")).map_err(|error| of_join(&error.into()))?;
    let keep = Arc::new(keep);
    let mut before = None;
    if let Some(context) = joined(&keep, &who).map_err(|error| of_join(&error))? {
        // One that was removed comes back as a newcomer, when a person gives it a token that is not the one it had.
        let given = args.token_file.as_ref().is_some_and(|file| file.exists());
        if !given || !member(&keep, seeds, root)?.is_shut_out().await {
            return Ok((context, keep));
        }
        complain("the seeds no longer let this host in as it was: it joins anew\n");
        let set_aside = keep.set_aside("node").map_err(|error| of_join(&error.into()))?;
        before = Some((context, set_aside));
    }
    let Some(token) = token(args)? else {
        let ended = keep.held("node").ok().flatten().is_some();
        let why = if ended {
            "this host's certificate has ended, and there is no token"
        } else {
            "this host has not joined yet, and there is no token"
        };
        return Err(Failure::usage(why)
            .help("name the file of the token with --token-file; on a seed, `reeve token create` prints one"));
    };
    let token = join_token(&token).map_err(|error| of_join(&error))?;
    let waiting = |hosts: &BTreeMap<Host, String>| {
        complain(&format!("waiting for a seed to let this host in\n{}", missing(hosts)));
    };
    let context = tokio::select! {
        joined = join(&keep, &token, seeds, &who, waiting) => match (joined, before) {
            (Ok(context), _) => context,
            // What runs here goes on, and is looked after, whatever the token is worth.
            (Err(error), Some((context, set_aside))) => {
                keep.bring_back(&set_aside).map_err(|error| of_join(&error.into()))?;
                let failure = of_join(&error).detail("this host goes on with what it runs, outside the cluster");
                complain(&failure.render(output::look()));
                return Ok((context, keep));
            }
            (Err(error), None) => return Err(of_join(&error)),
        },
        () = shutdown.draining() => return Err(Failure::new(Exit::Failed, "ended before a seed had let this host in")),
    };
    tracing::info!(%node, "this host has joined");
    Ok((context, keep))
}

/// What keeps a node's certificate good, once it has joined.
pub fn member(keep: &Arc<Keep>, seeds: &Seeds, root: &Root) -> Result<Arc<Membership>, Failure> {
    let member = Membership::on_disk(Arc::clone(keep), Role::Node, seeds.clone(), root.clone());
    Ok(Arc::new(member.map_err(|error| of_join(&error))?))
}

/// What a person shows to agents, by the context in use or as root on a seed; None where there is neither, or a store of
/// one's own is named.
pub fn person(common: &Common) -> Result<Option<Arc<Door>>, Failure> {
    if matches!(contexts::chosen(common)?, Chosen::Told) {
        return Ok(None);
    }
    let keep = Keep::beside(&server_dir(common));
    let found = Believed::on_disk(&keep).and_then(|believed| Ok(believed.zip(keep.held("person")?)));
    let Some((believed, held)) = found.map_err(|error| failed(&error))? else {
        return Ok(None);
    };
    believed.door(&held).map(Some).map_err(|error| failed(&error))
}

/// `reeve token`.
pub async fn token_verb(common: &Common, verb: &TokenVerb) -> Verdict {
    match verb {
        TokenVerb::Install => {
            let token = InstallToken::generate(membership::now()).map_err(|error| failed(&error))?;
            let text = token.to_text();
            show(
                common,
                &text,
                &json!({ "token": text.as_str(), "cluster": token.cluster() }),
            );
            Ok(Exit::Done)
        }
        TokenVerb::Create(args) => create(common, args).await,
        TokenVerb::Ls => list(common).await,
        TokenVerb::Rm { ids } => {
            let connection = connect(common).await?;
            connection.marker().await?;
            for id in ids {
                if !tokens::withdraw(&connection.store, &connection.root, *id)
                    .await
                    .map_err(|error| of_tokens(&error))?
                {
                    return Err(
                        Failure::new(Exit::Failed, format!("there is no token {id}")).help("see `reeve token ls`")
                    );
                }
                print(&format!("token {id} is withdrawn\n"));
            }
            Ok(Exit::Done)
        }
    }
}

fn show(common: &Common, text: &str, value: &serde_json::Value) {
    match common.output {
        Format::Json => print(&output::json(value)),
        Format::Yaml => print(&output::yaml(value)),
        Format::Table | Format::Wide | Format::Name => print(&format!("{text}\n")),
    }
}

pub fn of_tokens(error: &TokensError) -> Failure {
    match error {
        TokensError::Store(error) => Failure::from(error.clone()),
        TokensError::NotASeed(_) => Failure::new(
            Exit::Failed,
            "tokens are read on a seed or with a context, and there is neither here",
        )
        .detail(error.to_string())
        .help(NO_VOICE),
        TokensError::OtherSeed { .. } => failed(error).help("write it as it is written in --seeds"),
        TokensError::OwnSeat(_) => failed(error).help("run it on another seed"),
        TokensError::Ask(error) => of_ask(error),
        TokensError::Keep(_)
        | TokensError::Key(_)
        | TokensError::Record(_)
        | TokensError::OtherToken
        | TokensError::Conflict => failed(error),
    }
}

/// The seeds do not do what an administrator asks.
pub fn of_ask(error: &AskError) -> Failure {
    let mut failure = failed(error);
    match error {
        AskError::Nobody(_) => {
            failure.exit = Exit::Unreachable;
            failure.help("can this machine reach port 2378 of the seeds, and do they run?")
        }
        AskError::NoCertificate(_) => {
            failure.help("does `reeve server` run here? See its log; elsewhere, log in again")
        }
        AskError::Keep(_)
        | AskError::Show(_)
        | AskError::Tls(_)
        | AskError::Refused { .. }
        | AskError::Older { .. } => failure,
    }
}

/// Where this host keeps its seed.
fn own_dir(common: &Common) -> PathBuf {
    common.data_dir.clone().unwrap_or_else(|| SERVER_DIR.into())
}

/// The directory that says who this user is in the cluster: that of the context in use, else of the seed on this host.
pub fn server_dir(common: &Common) -> PathBuf {
    match contexts::chosen(common) {
        Ok(Chosen::Context(place)) => place.dir,
        Ok(Chosen::Told | Chosen::Here) | Err(_) => own_dir(common),
    }
}

/// In whose name the authority is asked: of an administrator by the context in use, else of the seed on this host. None: there
/// is neither.
pub fn voice(common: &Common) -> Result<Option<Voice>, Failure> {
    match contexts::chosen(common)? {
        Chosen::Context(place) => place.voice(),
        Chosen::Told | Chosen::Here => Voice::here(&own_dir(common)).map_err(|error| failed(&error)),
    }
}

/// As who the seeds are asked how they are: as [`voice`], and as everybody who has logged in.
pub fn asks(common: &Common) -> Result<Option<Voice>, Failure> {
    match contexts::chosen(common)? {
        Chosen::Context(place) => place.asks().map(Some),
        Chosen::Told | Chosen::Here => voice(common),
    }
}

/// What to do where there is neither.
pub const NO_VOICE: &str = "run it on a seed, as root (its --data-dir is the one of `reeve server`), or with a context of a person with the right `admin`";

async fn create(common: &Common, args: &TokenCreateArgs) -> Verdict {
    if args.ttl > MAX_TTL || args.ttl < Duration::from_secs(1) {
        return Err(Failure::usage("--ttl is from 1s to 30d"));
    }
    if args.person.as_ref().is_some_and(|name| name.as_str() == "root") {
        return Err(Failure::usage("--person root: that is root on the seeds").help("name the person"));
    }
    let Some(voice) = voice(common)? else {
        return Err(Failure::new(
            Exit::Failed,
            "tokens are made by the cluster's authority: on a seed, or by one for an administrator",
        )
        .help(NO_VOICE));
    };
    let connection = connect(common).await?;
    connection.marker().await?;
    let names = args.nodes.iter().map(|node| node.as_str().parse::<Name>());
    let names = names
        .collect::<Result<std::collections::BTreeSet<Name>, _>>()
        .map_err(|error| Failure::usage("--node").because(&error))?;
    let seconds = args.ttl.as_secs();
    let wanted = match (&args.seed, args.person.clone().zip(args.rights.clone())) {
        (Some(host), _) => {
            if voice.own().is_none() {
                return Err(Failure::new(
                    Exit::Failed,
                    "a seed's token is the cluster, and is made on another seed alone",
                )
                .help("run it there, as root, with --context here if contexts are in use"));
            }
            tokens::Wanted::seat(voice.dir(), host, seconds).map_err(|error| of_tokens(&error))?
        }
        (None, Some((name, rights))) => {
            persons::one_set_of_rights(&connection, &server_dir(common), &name, &rights).await?;
            tokens::Wanted {
                admits: Admits::Person(rights),
                names: [name].into(),
                uses: 1,
                seconds,
            }
        }
        (None, None) => tokens::Wanted {
            admits: Admits::Node,
            names,
            uses: args.uses,
            seconds,
        },
    };
    let made = tokens::create(&voice, &connection.store, &connection.root, wanted).await;
    let (token, record) = made.map_err(|error| of_tokens(&error))?;
    let text = token.to_text();
    let mut value = json!({ "token": text.as_str(), "id": record.id, "expires": record.expires.to_string(), "uses": record.uses_left });
    if let Admits::Person(rights) = &record.admits {
        value["person"] = json!(args.person);
        value["rights"] = json!(rights);
    }
    if let Some(host) = &args.seed {
        value["seed"] = json!(host);
    }
    show(common, &text, &value);
    Ok(Exit::Done)
}

/// Whom a token admits, for people: `nodes`, `node n3`, `anna (viewer)`.
fn whom(admits: &Admits, names: &Names) -> String {
    let names = match names {
        Names::Any => None,
        Names::Only(names) => Some(names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
    };
    match (admits, names) {
        (Admits::Node, None) => "nodes".to_owned(),
        (Admits::Node, Some(names)) => format!("node {names}"),
        (Admits::Server, names) => format!("seed {}", names.unwrap_or_else(|| "any".to_owned())),
        (Admits::Controller, _) => "controllers".to_owned(),
        (Admits::Person(rights), names) => format!("{} ({rights})", names.unwrap_or_else(|| "people".to_owned())),
    }
}

/// The last of those who joined: with the install token they are many.
fn few(joined: &[String]) -> String {
    let more = joined.len().saturating_sub(FEW);
    let last = joined[more..].join(",");
    if more > 0 {
        format!("{last} and {more} more")
    } else {
        last
    }
}

async fn list(common: &Common) -> Verdict {
    let connection = connect(common).await?;
    let listed = tokens::list(&server_dir(common), &connection.store, &connection.root).await;
    let listed = listed.map_err(|error| of_tokens(&error))?;
    let now = membership::now();
    if common.output.is_for_machines() {
        let value: Vec<serde_json::Value> = listed
            .iter()
            .map(|(id, record)| match record {
                Ok(record) => json!({
                    "id": id, "for": whom(&record.admits, &record.names), "usesLeft": record.uses_left, "expires": record.expires.to_string(), "expired": now > record.expires,
                    "joined": record.joined.iter().map(|joined| joined.name.to_string()).collect::<Vec<_>>(),
                }),
                Err(why) => json!({ "id": id, "invalid": why }),
            })
            .collect();
        print(&match common.output {
            Format::Yaml => output::yaml(&json!(value)),
            Format::Name => value
                .iter()
                .filter_map(|token| token["id"].as_str())
                .map(|id| format!("{id}\n"))
                .collect(),
            Format::Json | Format::Table | Format::Wide => output::json(&json!(value)),
        });
        return Ok(Exit::Done);
    }
    if listed.is_empty() {
        print("there are no tokens; `reeve token create` prints one\n");
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["ID", "FOR", "USES LEFT", "EXPIRES", "JOINED"]);
    for (id, record) in &listed {
        let cell = |text: String| Cell::from(text);
        match record {
            Ok(record) => {
                let joined: Vec<String> = record.joined.iter().map(|joined| joined.name.to_string()).collect();
                let left = record.expires.unix_seconds().saturating_sub(now.unix_seconds());
                let expires = if now > record.expires {
                    "expired".to_owned()
                } else {
                    format!("in {}", output::short(left))
                };
                table.row(vec![
                    cell(id.to_string()),
                    cell(whom(&record.admits, &record.names)),
                    cell(record.uses_left.to_string()),
                    cell(expires),
                    cell(few(&joined)),
                ]);
            }
            Err(why) => table.row(vec![
                cell(id.to_string()),
                cell("-".to_owned()),
                cell("-".to_owned()),
                cell(why.clone()),
                cell(String::new()),
            ]),
        }
    }
    print(&table.render(output::limit()));
    Ok(Exit::Done)
}
