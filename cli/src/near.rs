//! What people do near their containers: `logs`, `exec`, `run`, `attach`, `top`, `cp`, `port-forward`. Here is what they share: which
//! instances are meant, and the way to their agents: this host's by the socket in its data directory, others by the address
//! in their node's facts, with mutual TLS.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::api::ask::{Asked, Ended, Refusal, Why};
use agent::api::wire::Kind as FrameKind;
use agent::api::{AskError, Client, SOCKET, Way};
use rustls::time_provider::DefaultTimeProvider;
use schemas::keys::ResourceKey;
use schemas::kinds::Kind;
use schemas::names::{InstanceName, NodeName};
use schemas::records::Phase;
use serde::de::DeserializeOwned;
use trust::identity::Role;
use trust::tls::{Door, Peers};

use crate::args::Common;
use crate::args::near::tls_files;
use crate::connect::{Connection, Marker, connect, default_data_dir};
use crate::failure::{Exit, Failure};
use crate::seats;
use crate::view::{Instance, View, service_key, title};

mod copy;
mod exec;
mod expose;
mod forward;
mod ground;
mod host;
mod images;
mod keys;
mod links;
mod logs;
mod lookup;
mod run;
mod tar;
mod terminal;
mod top;
mod trace;

pub use copy::copy;
pub use exec::{attach, exec};
pub use expose::{expose, hide};
pub use forward::forward;
pub use host::{docker, node_exec};
pub use images::images;
pub use keys::rotate_keys;
pub use links::links;
pub use logs::logs;
pub use lookup::lookup;
pub use run::run;
pub use top::top;
pub use trace::trace;

/// What is read of the store.
const CLASSES: [&str; 6] = ["desired", "nodes", "sessions", "verdicts", "assignments", "reports"];
/// Where an agent keeps its data when it is not told.
const AGENT_DIR: &str = "/var/lib/reeve/agent";

/// What a person named.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Service(ResourceKey),
    Instance(InstanceName),
}

impl Target {
    /// `web`, `service/web`, `web.2`, `instance/web.2`; with another namespace before the slash, `prod/web.2`.
    fn parse(common: &Common, text: &str) -> Result<Self, Failure> {
        let wrong = |why: String| {
            Failure::usage(format!("`{text}` names no service and no instance: {why}"))
                .help("write a service, `web`, or one of its instances, `web.2`")
        };
        let mut namespace = common.namespace.clone().unwrap_or_default();
        let name = match text.split_once('/') {
            None => text,
            Some((before, name)) => {
                let known = Kind::from_person(before);
                if !matches!(known, Ok(Kind::Service)) && !["instance", "instances", "in"].contains(&before) {
                    if let Ok(kind) = known {
                        return Err(wrong(format!("a {} runs nothing", kind.segment())));
                    }
                    namespace = before.parse().map_err(|error| wrong(format!("{error}")))?;
                }
                name
            }
        };
        match name.split_once('.') {
            None => {
                let name = name.parse().map_err(|error| wrong(format!("{error}")))?;
                Ok(Self::Service(service_key(&namespace, &name)))
            }
            Some((workload, slot)) => Ok(Self::Instance(InstanceName {
                namespace,
                workload: workload.parse().map_err(|error| wrong(format!("{error}")))?,
                slot: slot.parse().map_err(|error| wrong(format!("{error}")))?,
            })),
        }
    }

    fn service(&self) -> ResourceKey {
        match self {
            Self::Service(key) => key.clone(),
            Self::Instance(name) => service_key(&name.namespace, &name.workload),
        }
    }

    /// The instances that are meant, by name, then node.
    fn of<'a>(&self, view: &'a View) -> Vec<Instance<'a>> {
        let mut all = view.instances();
        all.retain(|one| match self {
            Self::Service(key) => one.is_of(key),
            Self::Instance(name) => one.name == *name,
        });
        all
    }

    /// Why there is none.
    fn nothing(&self, view: &View) -> Failure {
        let key = self.service();
        let declared = view.declared.contains_key(&key);
        match self {
            Self::Service(_) if declared => Failure::new(Exit::Failed, format!("{} has no instance yet", title(&key)))
                .help(format!("`reeve describe service {}` says why", key.name)),
            Self::Instance(name) if declared => {
                let service = Self::Service(key.clone());
                let names: Vec<String> = service.of(view).iter().map(|one| one.name.to_string()).collect();
                let failure = Failure::new(Exit::Failed, format!("there is no instance {name}"));
                if names.is_empty() {
                    failure.help(format!("{} has none yet", title(&key)))
                } else {
                    failure.help(format!("{} has {}", title(&key), list(&names)))
                }
            }
            Self::Service(_) | Self::Instance(_) => Failure::new(Exit::Failed, format!("there is no {}", title(&key)))
                .help("list services with `reeve get services -A`"),
        }
    }

    /// The one instance that is meant.
    fn one<'a>(&self, view: &'a View) -> Result<Instance<'a>, Failure> {
        let mut all = self.of(view);
        if all.is_empty() {
            return Err(self.nothing(view));
        }
        let runs = |one: &Instance<'_>| one.reported.is_some_and(|reported| reported.phase == Phase::Running);
        if all.iter().any(runs) {
            all.retain(runs);
        }
        if all.len() > 1 {
            let names: Vec<String> = all.iter().map(|one| format!("{} on {}", one.name, one.node)).collect();
            return Err(
                Failure::usage(format!("{} has {} instances", title(&self.service()), all.len()))
                    .help(format!("name one: {}", list(&names))),
            );
        }
        all.pop().ok_or_else(|| self.nothing(view))
    }
}

/// The first few, and that there are more.
fn list(names: &[String]) -> String {
    let more = if names.len() > 8 { ", ..." } else { "" };
    format!("{}{more}", names.iter().take(8).cloned().collect::<Vec<_>>().join(", "))
}

/// The ways to agents.
#[derive(Clone, Debug, Default)]
struct Ways {
    /// Agents of this host, by node.
    local: BTreeMap<String, Client>,
    /// Sockets that this user may not open.
    closed: Vec<PathBuf>,
    tls: Option<Shown>,
}

/// What is shown to agents of other hosts, and which of theirs count.
#[derive(Clone, Debug)]
enum Shown {
    /// The files that were named: whoever has a certificate of the CA.
    Files(Arc<rustls::ClientConfig>),
    /// As a member of a cluster of seeds: that very node.
    Member(Arc<Door>),
}

impl Shown {
    fn to(&self, node: &NodeName) -> Result<Arc<rustls::ClientConfig>, Failure> {
        let door = match self {
            Self::Files(config) => return Ok(Arc::clone(config)),
            Self::Member(door) => door,
        };
        let wrong = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(Exit::Failed, format!("cannot prepare TLS for node {node}")).because(error)
        };
        let name = node
            .as_str()
            .parse()
            .map_err(|error: trust::identity::IdentityError| wrong(&error))?;
        let config = door.client(Peers::One(Role::Node, name), Arc::new(DefaultTimeProvider));
        config.map(Arc::new).map_err(|error| wrong(&error))
    }
}

impl Ways {
    /// Looks for the agents of this host, and reads the files for those of others.
    async fn find(common: &Common, marker: &Marker) -> Result<Self, Failure> {
        let mut ways = Self::default();
        let dir = common.data_dir.clone().unwrap_or_else(default_data_dir);
        let mut places = vec![dir.join("agent"), dir, Path::new(AGENT_DIR).to_owned()];
        places.dedup();
        for socket in places.into_iter().map(|dir| dir.join(SOCKET)) {
            let client = Client::new(Way::Socket(socket.clone()));
            match client.who().await {
                Ok(who) if who.cluster == marker.record.id.as_str() => {
                    ways.local.entry(who.node).or_insert(client);
                }
                Err(AskError::Reach { way: _, source }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                    ways.closed.push(socket);
                }
                // Another cluster's, or nobody is there.
                Ok(_) | Err(_) => {}
            }
        }
        if let Some(files) = tls_files(common) {
            let config = files.client();
            let config = config.map_err(|error| Failure::usage("cannot prepare TLS").because(&error))?;
            ways.tls = Some(Shown::Files(config));
        } else {
            ways.tls = seats::person(common)?.map(Shown::Member);
        }
        Ok(ways)
    }

    /// The way to a node's agent.
    fn to(&self, view: &View, node: &NodeName) -> Result<Client, Failure> {
        if let Some(client) = self.local.get(node.as_str()) {
            return Ok(client.clone());
        }
        let no_way = || {
            Failure::new(
                Exit::Unreachable,
                format!("there is no way to the agent of node {node}"),
            )
        };
        let facts = view.facts.get(node).and_then(|facts| facts.as_ref().ok());
        match (facts.and_then(|facts| facts.addresses.api.clone()), &self.tls) {
            (Some(address), Some(shown)) => Ok(Client::new(Way::Tls {
                address,
                config: shown.to(node)?,
            })),
            (Some(address), None) => {
                Err(no_way().help(format!("it listens at {address}: name --ca, --cert and --key to be let in")))
            }
            (None, _) => match self.closed.first() {
                Some(socket) => Err(no_way().help(format!(
                    "this user may not open {}: be the agent's user, or root",
                    socket.display()
                ))),
                None => Err(no_way().help(format!(
                    "it serves its own host only: run this on {node} with its --data-dir, or start the agent with --api-addr"
                ))),
            },
        }
    }
}

/// The store, what is in it, and the ways.
async fn prepare(common: &Common) -> Result<(Connection, View, Ways), Failure> {
    let connection = connect(common).await?;
    let marker = connection.marker().await?;
    let view = View::read(&connection, &CLASSES).await?;
    let ways = Ways::find(common, &marker).await?;
    Ok((connection, view, ways))
}

/// The largest answer that is read: some hundred thousand instances.
const MAX_ANSWER: usize = 64 << 20;

/// A question whose answer is one document.
async fn whole<T: DeserializeOwned>(client: &Client, node: &NodeName, asked: Asked) -> Result<T, AskError> {
    let mut talk = client.ask(node, &asked).await?;
    let mut bytes = Vec::new();
    loop {
        let frame = talk.next().await?.ok_or(AskError::Ended)?;
        if frame.kind == FrameKind::Data && bytes.len() + frame.payload.len() <= MAX_ANSWER {
            bytes.extend_from_slice(&frame.payload);
        } else if frame.kind == FrameKind::End {
            return match serde_json::from_slice(&frame.payload) {
                Ok(Ended::Failed(refusal)) => Err(AskError::Refused(refusal)),
                Ok(Ended::Done) => serde_json::from_slice(&bytes).map_err(|_| AskError::Ended),
                Ok(Ended::Exited { code: _ } | Ended::Gone) | Err(_) => Err(AskError::Ended),
            };
        } else {
            return Err(AskError::Ended);
        }
    }
}

/// Why an agent did not do what it was asked.
fn failed(what: &str, node: &NodeName, error: &AskError) -> Failure {
    match error {
        AskError::Refused(Refusal { why, message, remedy }) => {
            let exit = match why {
                Why::NotUnderstood | Why::Denied | Why::NotHere | Why::NotRunning | Why::Unreadable => Exit::Failed,
                Why::Engine | Why::Busy | Why::Unrecorded => Exit::Failed,
            };
            let failure = Failure::new(
                exit,
                format!("cannot {what} on node {node}: {}", crate::failure::printable(message)),
            );
            match remedy {
                Some(remedy) => failure.help(crate::failure::printable(remedy)),
                None => failure,
            }
        }
        AskError::Reach { .. }
        | AskError::NoAgent { .. }
        | AskError::OtherNode { .. }
        | AskError::Broke(_)
        | AskError::Ended
        | AskError::Silent => {
            let failure = Failure::new(Exit::Unreachable, format!("cannot {what} on node {node}")).because(error);
            if failure.is_caused_by(&["NotValidForName", "not valid for name"]) {
                return failure.help(
                    "the agent's certificate must bear the address it is reached at, or name one it bears with --api-advertise",
                );
            }
            if failure.is_caused_by(&["UnknownIssuer", "BadSignature", "fatal alert"]) {
                return failure.help("both sides must have certificates of one CA: see --ca, --cert and --key");
            }
            failure.help("see that its agent runs: `reeve get nodes`")
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn services_and_instances_are_told_apart_by_their_dot() {
        let common = Cli::try_parse_from(["reeve"]).expect("no flags").common;
        let parse = |text: &str| Target::parse(&common, text);
        assert_eq!(parse("web").expect("a service"), parse("svc/web").expect("a service"));
        assert_eq!(parse("web.2").expect("one"), parse("instance/web.2").expect("one"));
        match parse("prod/web.n1") {
            Ok(Target::Instance(name)) => assert_eq!(
                (name.namespace.as_str(), name.to_string()),
                ("prod", "web.n1".to_owned())
            ),
            other => panic!("{other:?}"),
        }
        for bad in ["", "web.", ".2", "web.0", "node/n1", "a/b/c", "We b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
