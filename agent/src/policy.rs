//! The node's policy: what any assignment may ask of this node, as a file of root's says. The store is not the root of trust;
//! this is the last word on the node itself. The loop asks [`Gate::judge`] before anything is pulled or stopped, and every
//! create passes [`Gate::admit`] with the final request. Both call one pure function, [`check`]; only paths are looked up here.
//! It promises: what is not known to be allowed is denied, with every reason; what runs is never stopped by it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod check;
mod file;
mod paths;

pub use check::{Asked, Denial, Rule, check};
pub use file::{Fingerprint, Problem, parse};
pub use paths::{Guarded, Resolved, resolve};

/// Where the policy is when nothing is said; with no file there the built-in one holds.
pub const USUAL_FILE: &str = "/etc/reeve/policy.yaml";
/// The directory that no container ever sees.
const OWN_DIRECTORY: &str = "/etc/reeve";
/// A path that cannot be looked up within this time is denied: a network file system may hang.
const LOOK_UP: Duration = Duration::from_secs(5);
/// The longest text of all denials together, in characters.
const MAX_CHARACTERS: usize = 1_000;

/// What assignments may ask of this node. What is on no list is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// All devices and all capabilities: root on the host.
    pub privileged: bool,
    /// Host paths that may be mounted.
    pub host_paths: Vec<HostPath>,
    /// Namespaces of the host that may be joined.
    pub host_namespaces: BTreeSet<HostNamespace>,
    /// `*`, a registry or path that ends in `/`, or one repository: all in full, `docker.io/library/nginx`.
    pub images: Vec<String>,
    /// Capabilities beyond the engine's default set, without `CAP_`.
    pub capabilities: BTreeSet<String>,
    /// Host devices that may be given to containers.
    pub devices: Vec<DeviceRule>,
    /// Security options beyond `no-new-privileges`, as `key=value`.
    pub security_options: BTreeSet<String>,
    /// Kernel parameters of a container's own namespaces; a name may end in `*`.
    pub sysctls: Vec<String>,
    /// The lowest port of the node that may be published.
    pub lowest_port: u16,
    /// Addresses of the node on which ports may be published; None: all.
    pub host_addresses: Option<BTreeSet<IpAddr>>,
    /// Logging drivers of the engine.
    pub logging_drivers: BTreeSet<String>,
    /// Limits that may be set by name.
    pub ulimits: BTreeSet<String>,
    /// Commands that people may run on the node itself; not a matter of assignments.
    pub node_commands: BTreeSet<NodeCommand>,
}

/// A way for people to run commands on the node itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeCommand {
    /// Any program of the host, as the agent's user: `reeve node exec`.
    Exec,
    /// The engine's own program: `reeve docker`.
    Docker,
}

impl NodeCommand {
    /// As the policy file says it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Docker => "docker",
        }
    }
}

/// A host path, and all under it, that may be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPath {
    pub path: PathBuf,
    /// It must be mounted read-only.
    pub read_only: bool,
}

/// A device, or all under a directory of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    pub path: PathBuf,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
}

/// A namespace of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostNamespace {
    Network,
    Pid,
    Ipc,
    User,
}

impl HostNamespace {
    /// As the policy file says it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Pid => "pid",
            Self::Ipc => "ipc",
            Self::User => "user",
        }
    }
}

fn words(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn places(list: &[&str]) -> Vec<HostPath> {
    let place = |path: &&str| HostPath {
        path: PathBuf::from(path),
        read_only: false,
    };
    list.iter().map(place).collect()
}

impl Policy {
    /// What holds on a node without a policy file: nothing that hands over the host.
    #[must_use]
    pub fn of_a_node() -> Self {
        Self {
            privileged: false,
            host_paths: places(&["/srv", "/mnt", "/media"]),
            host_namespaces: BTreeSet::new(),
            images: vec!["*".to_owned()],
            capabilities: BTreeSet::new(),
            devices: Vec::new(),
            security_options: BTreeSet::new(),
            sysctls: ["net.*", "kernel.shm*", "kernel.msg*", "kernel.sem", "fs.mqueue.*"]
                .map(str::to_owned)
                .to_vec(),
            lowest_port: 1,
            host_addresses: None,
            logging_drivers: words(&["json-file", "local", "journald", "none"]),
            // Without `nice` and `rtprio`, by which a container could take a core for itself.
            ulimits: words(&[
                "core",
                "cpu",
                "data",
                "fsize",
                "locks",
                "memlock",
                "msgqueue",
                "nofile",
                "nproc",
                "rss",
                "rttime",
                "sigpending",
                "stack",
            ]),
            node_commands: BTreeSet::new(),
        }
    }

    /// The same for `reeve up`, whose manifests its own user writes: also the files of users.
    #[must_use]
    pub fn of_up() -> Self {
        Self {
            host_paths: places(&["/srv", "/mnt", "/media", "/home"]),
            ..Self::of_a_node()
        }
    }
}

/// Where the policy comes from.
#[derive(Clone, Debug)]
pub struct PolicyOptions {
    /// The file.
    pub file: PathBuf,
    /// A person named the file: then it must be there.
    pub named: bool,
    /// What holds where no file is, and for keys that the file leaves out.
    pub built_in: Policy,
    /// Paths that no policy opens, beside `/etc/reeve` and the agent's data directory: a store's data, a private key.
    pub own: Vec<PathBuf>,
    /// Paths that only a line of their own opens, beside the usual ones: the engine's socket.
    pub guarded: Vec<PathBuf>,
}

impl Default for PolicyOptions {
    fn default() -> Self {
        Self {
            file: PathBuf::from(USUAL_FILE),
            named: false,
            built_in: Policy::of_a_node(),
            own: Vec::new(),
            guarded: Vec::new(),
        }
    }
}

/// What is in force, and what it was read from.
#[derive(Debug)]
struct InForce {
    policy: Result<Policy, String>,
    /// Whose policy it is, for messages: a file, or the built-in one.
    name: String,
}

/// The one gate that every container passes before it is made.
#[derive(Debug)]
pub struct Gate {
    options: PolicyOptions,
    /// None for one that lets everything pass.
    closed: bool,
    in_force: RwLock<Arc<InForce>>,
    guarded: RwLock<Arc<Guarded>>,
    seen: RwLock<Option<Fingerprint>>,
}

/// What the gate says of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    Granted,
    /// Every reason, and for people all in one text.
    Denied {
        denials: Vec<Denial>,
        text: String,
    },
    /// The policy cannot be read.
    Withheld(String),
}

impl Gate {
    /// A gate with the policy of these options, read at once. A file that cannot be read lets nothing pass.
    #[must_use]
    pub fn new(options: PolicyOptions, data_dir: &Path) -> Self {
        let mut own = options.own.clone();
        own.extend([data_dir.to_owned(), PathBuf::from(OWN_DIRECTORY), options.file.clone()]);
        own.extend(crate::secrets::bases());
        let guarded = Guarded::new(own, options.guarded.clone());
        let seen = file::fingerprint(&options.file);
        let in_force = read(&options);
        Self {
            options,
            closed: true,
            in_force: RwLock::new(Arc::new(in_force)),
            guarded: RwLock::new(Arc::new(guarded)),
            seen: RwLock::new(seen),
        }
    }

    /// A gate that lets everything pass, for tests of engines.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn open() -> Self {
        let options = PolicyOptions::default();
        Self {
            in_force: RwLock::new(Arc::new(InForce {
                policy: Ok(options.built_in.clone()),
                name: String::new(),
            })),
            options,
            closed: false,
            guarded: RwLock::default(),
            seen: RwLock::default(),
        }
    }

    /// Reads the file again where it has changed. True: another policy is in force now, or none can be read.
    pub fn refresh(&self) -> bool {
        let now = file::fingerprint(&self.options.file);
        if *self.seen.read().unwrap_or_else(PoisonError::into_inner) == now {
            return false;
        }
        *self.seen.write().unwrap_or_else(PoisonError::into_inner) = now;
        let next = read(&self.options);
        let mut in_force = self.in_force.write().unwrap_or_else(PoisonError::into_inner);
        let differs = in_force.policy != next.policy || in_force.name != next.name;
        *in_force = Arc::new(next);
        differs
    }

    /// Why nothing passes, if that is so.
    #[must_use]
    pub fn unreadable(&self) -> Option<String> {
        self.in_force().policy.as_ref().err().cloned()
    }

    /// Whether people may run such commands on this node; else why not, with the remedy.
    ///
    /// # Errors
    /// When the policy does not say so, or cannot be read.
    pub fn allows_command(&self, command: NodeCommand) -> Result<(), (String, String)> {
        let file = self.options.file.display();
        let word = command.word();
        // As the file says now: what root has just taken back is gone. The loop hears of changes for itself.
        let in_force = read(&self.options);
        match &in_force.policy {
            Ok(policy) if policy.node_commands.contains(&command) => Ok(()),
            Ok(_) => Err((
                format!(
                    "commands of this kind are not allowed on this node: {} says nothing of them",
                    in_force.name
                ),
                format!("root of that node allows them with the line `nodeCommands: [{word}]` in {file}"),
            )),
            Err(why) => Err((
                format!("nothing is allowed on this node: {why}"),
                format!("correct {file} there"),
            )),
        }
    }

    /// Where the policy in force comes from, in words.
    #[must_use]
    pub fn name(&self) -> String {
        self.in_force().name.clone()
    }

    /// Where the engine keeps its data: only a line of its own opens that. True when that is news.
    pub fn engine_root(&self, root: &str) -> bool {
        let known = self.guarded();
        if root.is_empty() || known.names(Path::new(root)) {
            return false;
        }
        let mut next = (*known).clone();
        next.guard(PathBuf::from(root));
        *self.guarded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        true
    }

    /// What the policy says of a request where no path of the host has to be looked up; None where one has.
    #[must_use]
    pub fn judge_at_once(&self, asked: &Asked<'_>) -> Option<Judgement> {
        check::host_paths(asked.body)
            .is_empty()
            .then(|| self.judgement(asked, &Resolved::new()))
    }

    /// What the policy says of a request. Looks its host paths up first; blocks while it does.
    #[must_use]
    pub fn judge(&self, asked: &Asked<'_>) -> Judgement {
        let looked_up = check::host_paths(asked.body)
            .into_iter()
            .map(|path| {
                let leads = resolve(&path);
                (path, leads)
            })
            .collect();
        self.judgement(asked, &looked_up)
    }

    /// The last look before a create, with a deadline for paths.
    pub async fn admit(&self, asked: &Asked<'_>) -> Judgement {
        let paths = check::host_paths(asked.body);
        if paths.is_empty() || !self.closed {
            return self.judgement(asked, &Resolved::new());
        }
        let all = paths.clone();
        let look_up = runtime::blocking::spawn(move || {
            let leads = |path: String| {
                let leads = resolve(&path);
                (path, leads)
            };
            all.into_iter().map(leads).collect::<Resolved>()
        });
        let resolved = match tokio::time::timeout(LOOK_UP, look_up).await {
            Ok(Ok(resolved)) => resolved,
            Ok(Err(_)) | Err(_) => unknown(&paths),
        };
        self.judgement(asked, &resolved)
    }

    fn judgement(&self, asked: &Asked<'_>, resolved: &Resolved) -> Judgement {
        if !self.closed {
            return Judgement::Granted;
        }
        let in_force = self.in_force();
        let policy = match &in_force.policy {
            Ok(policy) => policy,
            Err(why) => return Judgement::Withheld(why.clone()),
        };
        let denials = check(policy, &self.guarded(), asked, resolved);
        if denials.is_empty() {
            return Judgement::Granted;
        }
        let text = told(&in_force.name, &denials);
        Judgement::Denied { denials, text }
    }

    /// The lowest port of the node that may be published, and on which of its addresses; None while the policy cannot be read.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, Option<Vec<IpAddr>>)> {
        if !self.closed {
            return Some((1, None));
        }
        let in_force = self.in_force();
        let policy = in_force.policy.as_ref().ok()?;
        let addresses = policy.host_addresses.as_ref();
        Some((policy.lowest_port, addresses.map(|all| all.iter().copied().collect())))
    }

    fn in_force(&self) -> Arc<InForce> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn guarded(&self) -> Arc<Guarded> {
        self.guarded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is said of paths that could not be looked up in time.
fn unknown(paths: &BTreeSet<String>) -> Resolved {
    let why = || Err(format!("it could not be looked up within {} s", LOOK_UP.as_secs()));
    paths
        .iter()
        .map(|path| (path.clone(), why()))
        .collect::<BTreeMap<_, _>>()
}

fn read(options: &PolicyOptions) -> InForce {
    let shown = options.file.display().to_string();
    match file::read(&options.file) {
        Ok(None) if !options.named => InForce {
            policy: Ok(options.built_in.clone()),
            name: format!("the node's built-in policy (there is no {shown})"),
        },
        Ok(None) => InForce {
            policy: Err(format!(
                "{shown} is not there: put the policy there, or start without --policy"
            )),
            name: shown,
        },
        Ok(Some(text)) => InForce {
            policy: parse(&text, &options.built_in).map_err(|problems| {
                let lines: Vec<String> = problems.iter().take(5).map(|one| format!("{shown}:{one}")).collect();
                lines.join("; ")
            }),
            name: format!("the node's policy {shown}"),
        },
        Err(why) => InForce {
            policy: Err(format!("{shown}: {why}")),
            name: shown,
        },
    }
}

/// All denials in one text of bounded length; those that find no room are counted.
fn told(name: &str, denials: &[Denial]) -> String {
    let mut text = format!("denied by {name}: ");
    for (at, denial) in denials.iter().enumerate() {
        let one = denial.to_string();
        let left = denials.len() - at;
        if at > 0 && text.chars().count() + one.chars().count() + 16 > MAX_CHARACTERS {
            text.push_str(&format!("; and {left} more"));
            break;
        }
        if at > 0 {
            text.push_str("; ");
        }
        text.push_str(&one);
    }
    text
}

#[cfg(test)]
mod tests;
