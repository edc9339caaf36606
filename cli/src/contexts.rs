//! Clusters that a person has logged in to from this machine, which need not belong to them: a directory each under
//! `~/.config/reeve/contexts` with key, certificate and authorities, for that user alone; one of them is in use. `connect`
//! asks here first which cluster is meant. A certificate is renewed when a verb finds that it is time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use membership::believed::Believed;
use membership::join::JoinError;
use membership::keep::{Context, Keep, KeepError};
use membership::persons::{self, LoggedIn, LoginError};
use membership::renew::Membership;
use membership::seeds::Seeds;
use membership::voice::Voice;
use runtime::{EtcdStore, Prefix, Store as _};
use schemas::keys::{Key, Root};
use schemas::names::ResourceName;
use serde::{Deserialize, Serialize};
use serde_json::json;
use trust::certificate::Certificate;
use trust::identity::{Rights, Role, Who};
use trust::token::Token;

use crate::Verdict;
use crate::args::Common;
use crate::args::contexts::{ContextVerb, LoginClusterArgs};
use crate::connect::connect;
use crate::failure::{Exit, Failure, folded};
use crate::output::{self, Cell, Format, Table, Tone, complain, print};
use crate::seats::{self, failed};

/// The name that means what runs on this host.
pub const HERE: &str = "here";
/// The name of the context in use, in `~/.config/reeve`.
const CURRENT: &str = "current";
const CONTEXTS: &str = "contexts";
/// What is kept beside the certificate.
const LOGIN: &str = "login.json";
/// How long a verb waits for its certificate's successor.
const RENEWAL: Duration = Duration::from_secs(5);

/// Which cluster is meant.
#[derive(Debug)]
pub enum Chosen {
    /// The one that --etcd names.
    Told,
    Context(Place),
    /// What runs on this host.
    Here,
}

/// A context on this machine.
#[derive(Clone, Debug)]
pub struct Place {
    pub name: ResourceName,
    pub dir: PathBuf,
}

/// The file [`LOGIN`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Login {
    version: u32,
    seeds: Seeds,
    /// The store's client URLs.
    endpoints: Vec<String>,
}

/// `~/.config/reeve`, where there is a home.
fn base() -> Option<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|text| !text.is_empty())
            .map(PathBuf::from)
    };
    variable("XDG_CONFIG_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".config")))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("reeve"))
}

fn home() -> Result<PathBuf, Failure> {
    base().ok_or_else(|| {
        Failure::usage("there is no place to keep contexts: neither HOME nor XDG_CONFIG_HOME is an absolute path")
            .help("set HOME to this user's directory")
    })
}

fn place(name: &ResourceName) -> Option<Place> {
    let dir = base()?.join(CONTEXTS).join(name.as_str());
    dir.join(LOGIN).is_file().then(|| Place {
        name: name.clone(),
        dir,
    })
}

fn unknown(name: &ResourceName) -> Failure {
    Failure::usage(format!("there is no context `{name}`"))
        .help("`reeve context ls` lists them; `reeve login-cluster` makes one")
}

fn named(name: &ResourceName) -> Result<Chosen, Failure> {
    if name.as_str() == HERE {
        return Ok(Chosen::Here);
    }
    place(name).map(Chosen::Context).ok_or_else(|| unknown(name))
}

fn current() -> Option<ResourceName> {
    let text = std::fs::read_to_string(base()?.join(CURRENT)).ok()?;
    text.trim().parse().ok()
}

/// Whether a value is there because of the environment, and nobody typed it.
fn from_environment(variable: &str, value: &str) -> bool {
    std::env::var(variable).is_ok_and(|found| found == value)
}

/// Whether nobody typed `--context here`, which sets REEVE_ETCD aside.
pub fn not_here(common: &Common) -> bool {
    let typed = |name: &ResourceName| name.as_str() == HERE && !from_environment("REEVE_CONTEXT", name.as_str());
    !common.context.as_ref().is_some_and(typed)
}

/// Which cluster is meant: what was typed, else what the environment says, else a seat that is named by its directory, else
/// the context in use, else what is on this host.
pub fn chosen(common: &Common) -> Result<Chosen, Failure> {
    let etcd = common.etcd.as_deref().map(|text| from_environment("REEVE_ETCD", text));
    let context = { common.context.as_ref() }.map(|name| (name, from_environment("REEVE_CONTEXT", name.as_str())));
    match (etcd, context) {
        (Some(false), Some((_, false))) => {
            Err(Failure::usage("--etcd and --context both name a cluster").help("give one of them"))
        }
        (Some(true), Some((_, true))) => {
            Err(Failure::usage("REEVE_ETCD and REEVE_CONTEXT both name a cluster").help("unset one of them"))
        }
        (Some(false), _) | (Some(true), None) => Ok(Chosen::Told),
        (_, Some((name, _))) => named(name),
        (None, None) if common.data_dir.is_some() => Ok(Chosen::Here),
        (None, None) => match current() {
            None => Ok(Chosen::Here),
            Some(name) => named(&name).map_err(|_| {
                Failure::usage(format!("the context in use, `{name}`, is not there any more"))
                    .help("choose another with `reeve context use NAME`; `here` is what runs on this host")
            }),
        },
    }
}

/// What is wrong with a context's files.
fn damaged(place: &Place, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Exit::Failed, format!("context `{}` cannot be used", place.name))
        .because(error)
        .help(format!("log in again: {}", place.again()))
}

impl Place {
    fn keep(&self) -> Keep {
        Keep::beside(&self.dir)
    }

    /// How to log in again, as it is typed.
    fn again(&self) -> String {
        let seeds = self
            .login()
            .map_or_else(|_| "HOST,HOST".to_owned(), |login| login.seeds.to_string());
        format!(
            "`reeve login-cluster --seeds {seeds} --name {} --token-file FILE`, with a token of `reeve token create --person NAME \
             --rights RIGHTS` on a seed",
            self.name
        )
    }

    fn login(&self) -> Result<Login, Failure> {
        let read = self.keep().read_json::<Login>(LOGIN);
        match read {
            Ok(Some(login)) => Ok(login),
            Ok(None) => Err(unknown(&self.name)),
            Err(error) => {
                Err(Failure::new(Exit::Failed, format!("context `{}` cannot be read", self.name)).because(&error))
            }
        }
    }

    fn certificate(&self) -> Result<Certificate, Failure> {
        let held = self.keep().held(&Role::Person.to_string());
        let held = held.map_err(|error| damaged(self, &error))?;
        let missing = std::io::Error::other("its certificate is missing");
        held.map(|held| held.certificate).ok_or_else(|| damaged(self, &missing))
    }

    /// The person's name and rights.
    pub fn person(&self) -> Option<(String, Rights)> {
        match &self.certificate().ok()?.identity().who {
            Who::Person(name, rights) => Some((name.to_string(), rights.clone())),
            Who::Node(_) | Who::Server(_) | Who::Controller(_) => None,
        }
    }

    /// In whose name the seeds are asked for what only the authority can do; None for who is no administrator.
    pub fn voice(&self) -> Result<Option<Voice>, Failure> {
        if !matches!(self.person(), Some((_, Rights::Admin))) {
            return Ok(None);
        }
        self.asks().map(Some)
    }

    /// As who the seeds are asked how they are.
    pub fn asks(&self) -> Result<Voice, Failure> {
        Ok(Voice::Person {
            dir: self.dir.clone(),
            seeds: self.login()?.seeds,
        })
    }

    /// Whether its person only looks.
    pub fn only_looks(&self) -> bool {
        matches!(self.person(), Some((_, Rights::Viewer { .. })))
    }

    /// For people: `prod as anna`.
    pub fn title(&self) -> String {
        match self.person() {
            Some((person, _)) => format!("{} as {person}", self.name),
            None => self.name.to_string(),
        }
    }

    /// How the store is reached.
    pub fn context(&self) -> Result<Context, Failure> {
        Ok(Context {
            endpoints: self.login()?.endpoints,
            ca: self.dir.join("ca.crt"),
            cert: self.dir.join("person.crt"),
            key: self.dir.join("person.key"),
        })
    }

    /// Renews the certificate when it is time. That it cannot is a warning for as long as it lasts, and a failure afterwards.
    pub async fn keep_fresh(&self, root: &Root) -> Result<(), Failure> {
        let certificate = self.certificate()?;
        let (now, until) = (membership::now(), certificate.validity().until);
        if now > until {
            return Err(Failure::new(
                Exit::Unreachable,
                format!("your certificate of context `{}` ended at {until}", self.name),
            )
            .help(format!("log in again: {}", self.again())));
        }
        let bundle = self.keep().bundle().ok().flatten();
        let former = bundle.is_some_and(|bundle| {
            let issuer = bundle.issuer(&certificate);
            issuer.is_some_and(|issuer| bundle.former().contains(issuer))
        });
        // Also when the authority that issued it has been replaced.
        if !certificate.renewal_is_due(now) && !former {
            return Ok(());
        }
        // Another verb is at it.
        let Ok(keep) = Keep::open(&self.dir) else { return Ok(()) };
        let renewed = async {
            let seeds = self.login().map_err(|failure| failure.sentence())?.seeds;
            let member = Membership::on_disk(Arc::new(keep), Role::Person, seeds, root.clone());
            let member = member.map_err(|error| error.to_string())?;
            let renewed = member.renew_if_due().await?;
            if renewed && former {
                // Whoever replaces the authority sees who is not done yet.
                let _told = member.confirm().await;
            }
            Ok::<_, String>(renewed)
        };
        let why = match tokio::time::timeout(RENEWAL, renewed).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(why)) => why,
            Err(_) => format!("no seed answered within {} s", RENEWAL.as_secs()),
        };
        let text = format!(
            "your certificate of context `{}` ends at {until} and could not be renewed: {why}",
            self.name
        );
        complain(&format!("warning: {}\n", folded(&text, "warning: ".len())));
        Ok(())
    }

    /// Takes what the authority says in the store into force here: its successors, and who was shut out.
    pub async fn hear(&self, store: &EtcdStore, root: &Root) {
        let keep = self.keep();
        let (Ok(Some(mut believed)), Ok(prefix)) = (Believed::on_disk(&keep), Prefix::new(root.prefix("trust"))) else {
            return;
        };
        let Ok(listing) = store.list(&prefix).await else { return };
        let said = listing.kvs.iter().filter_map(|kv| match root.parse(&kv.key) {
            Some(Key::Trust(key)) => Some((key, &*kv.value)),
            Some(_) | None => None,
        });
        if believed.hear(said, membership::now()).changed() {
            // The next verb hears it again.
            let _ = believed.write(&keep);
        }
    }

    /// What a store that cannot be reached means for who has logged in.
    pub fn unreachable(&self, failure: Failure, refused: bool) -> Failure {
        if failure.is_caused_by(&["UnknownIssuer", "BadSignature"]) {
            return failure.help(format!(
                "the authority of that cluster is not the one that you logged in to; log in again: {}",
                self.again()
            ));
        }
        if refused {
            return failure.help(format!(
                "the cluster ends the connection: were you removed from it? `reeve person ls` on a seed says so; log in again: {}",
                self.again()
            ));
        }
        failure.help(format!(
            "context `{}` names these endpoints: can this machine reach port 2379 there, and do most of the seeds run?",
            self.name
        ))
    }
}

/// Told by `reeve up`: that verbs here go elsewhere.
pub fn elsewhere(common: &Common) -> Option<String> {
    match chosen(common) {
        Ok(Chosen::Context(place)) => Some(format!(
            "note: commands go to context {}; for this cluster, `reeve context use {HERE}` or --context {HERE}\n",
            place.name
        )),
        Ok(Chosen::Told | Chosen::Here) | Err(_) => None,
    }
}

/// A failure, with what the rights of the context in use have to do with it.
pub fn explained(common: &Common, failure: Failure) -> Failure {
    if !failure.denied {
        return failure;
    }
    let person = match chosen(common) {
        Ok(Chosen::Context(place)) => place.person(),
        Ok(Chosen::Told | Chosen::Here) | Err(_) => None,
    };
    match person {
        Some((person, rights)) => failure.help(format!(
            "you are {person}, with the rights `{rights}`; for more, an administrator runs `reeve person rm {person}` and \
             `reeve token create --person {person} --rights RIGHTS`"
        )),
        None => failure,
    }
}

// ---- login-cluster ---------------------------------------------------------------------------------------------------

/// `reeve login-cluster`.
pub async fn login(common: &Common, args: &LoginClusterArgs) -> Verdict {
    let token = match seats::token(&args.token)? {
        Some(Token::Join(token)) => token,
        Some(Token::Install(_)) => {
            return Err(
                Failure::usage("this is the token that a cluster is installed with, and lets in nobody")
                    .help("on a seed, `reeve token create --person NAME --rights RIGHTS` prints one for a person"),
            );
        }
        None => {
            return Err(Failure::usage("there is no token")
                .help("name its file with --token-file, or - for standard input; on a seed, `reeve token create --person NAME --rights RIGHTS` prints one"));
        }
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => default_name(&args.seeds)?,
    };
    if name.as_str() == HERE {
        return Err(Failure::usage(format!("`{HERE}` is what runs on this host")).help("choose another --name"));
    }
    let contexts = home()?.join(CONTEXTS);
    if let Some(Ok(known)) = place(&name).map(|place| place.certificate())
        && let Some(asked) = persons::cluster(&token, &args.seeds).await
        && asked != known.identity().cluster
    {
        return Err(
            Failure::usage(format!("context `{name}` is of another cluster than the token")).help(format!(
                "choose another --name, or forget that one with `reeve context rm {name}`"
            )),
        );
    }
    // By the token: a second try after a crash asks with the same key, and does not use the token up twice.
    let beside = contexts.join(format!(".{}", token.id()));
    let keep = Keep::open(&beside).map_err(|error| of_keep(&error))?;
    let logged_in = match persons::login(&keep, &token, &args.seeds).await {
        Ok(logged_in) => logged_in,
        Err(error) => {
            if matches!(error, LoginError::Join(JoinError::Refused { .. })) {
                drop(keep);
                let _ = std::fs::remove_dir_all(&beside);
            }
            return Err(of_login(&error));
        }
    };
    let LoggedIn {
        context,
        certificate,
        seeds,
    } = logged_in;
    let login = Login {
        version: 1,
        seeds,
        endpoints: context.endpoints,
    };
    keep.write_json(LOGIN, &login).map_err(|error| of_keep(&error))?;
    drop(keep);
    let dir = contexts.join(name.as_str());
    put(&contexts, &beside, &dir)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write {}", dir.display())).because(&error))?;
    set_current(&name)?;
    let place = Place { name, dir };
    tell(common, &place, &certificate, &login);
    // That the seeds' port answers does not say that the store's does.
    let asked = Common {
        etcd: None,
        context: Some(place.name.clone()),
        ..common.clone()
    };
    if let Err(failure) = connect(&asked).await {
        complain(&format!("warning: logged in, but {}\n", failure.sentence()));
        if let Some(help) = failure.remedy() {
            complain(&format!("help: {help}\n"));
        }
    }
    Ok(Exit::Done)
}

/// Puts a directory in the place of another of the same cluster.
fn put(contexts: &Path, beside: &Path, dir: &Path) -> std::io::Result<()> {
    let old = contexts.join(".old");
    if dir.exists() {
        let _ = std::fs::remove_dir_all(&old);
        std::fs::rename(dir, &old)?;
    }
    std::fs::rename(beside, dir)?;
    let _ = std::fs::remove_dir_all(&old);
    Ok(())
}

fn default_name(seeds: &Seeds) -> Result<ResourceName, Failure> {
    let label = seeds.iter().next().map(|host| host.label()).unwrap_or_default();
    label
        .parse()
        .map_err(|_| Failure::usage("the seeds' names make no name for the context").help("give one with --name"))
}

fn set_current(name: &ResourceName) -> Result<(), Failure> {
    let keep = Keep::beside(&home()?);
    keep.write(CURRENT, format!("{name}\n").as_bytes())
        .map_err(|error| of_keep(&error))
}

fn of_keep(error: &KeepError) -> Failure {
    failed(error)
        .help("contexts are kept in ~/.config/reeve, or under XDG_CONFIG_HOME: this user must be able to write there")
}

fn of_login(error: &LoginError) -> Failure {
    let new = "on a seed, `reeve token create --person NAME --rights RIGHTS` prints a new token";
    match error {
        LoginError::Join(JoinError::Refused { at, reason }) => {
            let failure = Failure::new(Exit::Failed, format!("{at} does not let you in: {reason}"));
            if reason.contains("reeve person rm") {
                failure
            } else {
                failure.help(new)
            }
        }
        LoginError::Join(JoinError::Keep(error)) => of_keep(error),
        LoginError::Join(error) => failed(error),
        LoginError::Nobody(_) => {
            let mut failure = failed(error);
            failure.exit = Exit::Unreachable;
            failure.help("can this machine reach port 2378 of the seeds, and is the token of that cluster?")
        }
    }
}

fn tell(common: &Common, place: &Place, certificate: &Certificate, login: &Login) {
    let value = value(place, certificate, login);
    match common.output {
        Format::Json => print(&output::json(&value)),
        Format::Yaml => print(&output::yaml(&value)),
        Format::Name => print(&format!("{}\n", place.name)),
        Format::Table | Format::Wide => {
            let rights = place.person().map(|(person, rights)| format!("{person}, {rights}"));
            print(&format!(
                "logged in to cluster {}
  person       {}
  context      {}, now in use
  certificate  until {}; commands renew it by themselves
Next: reeve status
",
                certificate.identity().cluster,
                rights.unwrap_or_default(),
                place.name,
                certificate.validity().until,
            ));
        }
    }
}

fn value(place: &Place, certificate: &Certificate, login: &Login) -> serde_json::Value {
    let person = place.person();
    json!({
        "name": place.name,
        "inUse": current().as_ref() == Some(&place.name),
        "cluster": certificate.identity().cluster,
        "person": person.as_ref().map(|(person, _)| person),
        "rights": person.as_ref().map(|(_, rights)| rights.to_string()),
        "until": certificate.validity().until.to_string(),
        "seeds": login.seeds,
        "endpoints": login.endpoints,
        "directory": place.dir,
    })
}

// ---- context ---------------------------------------------------------------------------------------------------------

/// `reeve context`.
pub fn context(common: &Common, verb: &ContextVerb) -> Verdict {
    match verb {
        ContextVerb::Ls => list(common),
        ContextVerb::Use { name } => {
            named(name)?;
            if name.as_str() == HERE {
                let file = home()?.join(CURRENT);
                match std::fs::remove_file(&file) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(
                            Failure::new(Exit::Failed, format!("cannot remove {}", file.display())).because(&error)
                        );
                    }
                    Ok(()) | Err(_) => {}
                }
                print("commands now go to what runs on this host\n");
            } else {
                set_current(name)?;
                print(&format!("commands now go to context {name}\n"));
            }
            if let Some(variable) = ["REEVE_CONTEXT", "REEVE_ETCD"]
                .iter()
                .find(|name| std::env::var_os(name).is_some())
            {
                complain(&format!("warning: {variable} is set, and goes before it\n"));
            }
            Ok(Exit::Done)
        }
        ContextVerb::Show { name } => show(common, name.as_ref()),
        ContextVerb::Rm { names } => {
            for name in names {
                let place = place(name).ok_or_else(|| unknown(name))?;
                std::fs::remove_dir_all(&place.dir).map_err(|error| {
                    Failure::new(Exit::Failed, format!("cannot remove {}", place.dir.display())).because(&error)
                })?;
                print(&format!("context {name} is forgotten\n"));
                if current().as_ref() == Some(name) {
                    let _ = std::fs::remove_file(home()?.join(CURRENT));
                    complain("it was the one in use: commands now go to what runs on this host\n");
                }
            }
            Ok(Exit::Done)
        }
    }
}

fn all() -> Vec<Place> {
    let Some(base) = base() else { return Vec::new() };
    let entries = std::fs::read_dir(base.join(CONTEXTS)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<ResourceName>().ok());
    let mut all: Vec<Place> = names.filter_map(|name| place(&name)).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn list(common: &Common) -> Verdict {
    let places = all();
    if common.output.is_for_machines() {
        let values: Vec<serde_json::Value> = places
            .iter()
            .map(|place| match (place.certificate(), place.login()) {
                (Ok(certificate), Ok(login)) => value(place, &certificate, &login),
                (Err(failure), _) | (_, Err(failure)) => json!({ "name": place.name, "invalid": failure.sentence() }),
            })
            .collect();
        print(&match common.output {
            Format::Name => places.iter().map(|place| format!("{}\n", place.name)).collect(),
            Format::Yaml => output::yaml(&json!(values)),
            Format::Json | Format::Table | Format::Wide => output::json(&json!(values)),
        });
        return Ok(Exit::Done);
    }
    if places.is_empty() {
        print("there are no contexts: commands go to what runs on this host; `reeve login-cluster` makes one\n");
        return Ok(Exit::Done);
    }
    let (current, now) = (current(), membership::now());
    let mut table = Table::new(&["IN USE", "NAME", "PERSON", "RIGHTS", "UNTIL", "CLUSTER"]);
    for place in &places {
        let mark = if current.as_ref() == Some(&place.name) { "*" } else { "" };
        let mut row = vec![Cell::from(mark.to_owned()), Cell::from(place.name.to_string())];
        match (place.certificate(), place.person()) {
            (Ok(certificate), Some((person, rights))) => {
                let until = certificate.validity().until;
                let ended = now > until;
                let word = if ended { "ended".to_owned() } else { until.to_string() };
                row.extend([
                    Cell::from(person),
                    Cell::from(rights.to_string()),
                    Cell::new(word, if ended { Tone::Bad } else { Tone::Plain }),
                    Cell::from(certificate.identity().cluster.to_string()),
                ]);
            }
            (Err(failure), _) => row.extend(
                ["-", "-", "-"]
                    .map(|text| Cell::from(text.to_owned()))
                    .into_iter()
                    .chain([Cell::new(failure.sentence(), Tone::Bad)]),
            ),
            (Ok(_), None) => row.extend(["-", "-", "-", "-"].map(|text| Cell::from(text.to_owned()))),
        }
        table.row(row);
    }
    print(&table.render(output::limit()));
    Ok(Exit::Done)
}

fn show(common: &Common, name: Option<&ResourceName>) -> Verdict {
    let found = match name {
        Some(name) => named(name)?,
        None => chosen(common)?,
    };
    let place = match found {
        Chosen::Context(place) => place,
        Chosen::Told | Chosen::Here => {
            let what = match common.etcd.as_deref().filter(|_| name.is_none()) {
                Some(etcd) => format!("the store at {etcd}"),
                None => "what runs on this host".to_owned(),
            };
            match common.output {
                Format::Json => print(&output::json(&json!({ "name": HERE }))),
                Format::Yaml => print(&output::yaml(&json!({ "name": HERE }))),
                Format::Name => print(&format!("{HERE}\n")),
                Format::Table | Format::Wide => print(&format!("no context: commands go to {what}\n")),
            }
            return Ok(Exit::Done);
        }
    };
    let (certificate, login) = (place.certificate()?, place.login()?);
    let value = value(&place, &certificate, &login);
    match common.output {
        Format::Json => print(&output::json(&value)),
        Format::Yaml => print(&output::yaml(&value)),
        Format::Name => print(&format!("{}\n", place.name)),
        Format::Table | Format::Wide => {
            let (person, rights) = place
                .person()
                .map_or_else(Default::default, |(person, rights)| (person, rights.to_string()));
            print(&format!(
                "context      {}{}\ncluster      {}\nperson       {person}\nrights       {rights}\ncertificate  until {}\nseeds        {}\nfiles        {}\n",
                place.name,
                if current().as_ref() == Some(&place.name) {
                    ", in use"
                } else {
                    ""
                },
                certificate.identity().cluster,
                certificate.validity().until,
                login.seeds,
                place.dir.display(),
            ));
        }
    }
    Ok(Exit::Done)
}
