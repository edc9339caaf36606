//! The command line: every verb and flag, as clap reads them. `main` parses it first thing; the verbs take their part of
//! it. Nothing here does anything.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use schemas::keys::Root;
use schemas::names::{Namespace, NodeName, ResourceName};
use schemas::units::Span;

use crate::carry;
use crate::failure::{Exit, Failure};
use crate::names;
use crate::output::{self, Color, Format};
use crate::relay;

/// What `reeve` alone shows: one screen of 80 columns and 24 rows, the prompt after it included.
pub const START: &str = "\
Usage: reeve COMMAND [OPTIONS]      everything: reeve --help

Five minutes:
  reeve up                        a cluster of one node, here, in one process
  reeve apply -f web.yaml         run what it declares, and wait until it does
  reeve get services              what is declared, and how far it is
  reeve scale web=3               change it
  reeve status --watch            everything, live
  reeve delete service web        and take it away

Commands:
  apply plan validate scale delete           change what is declared
  get describe status events audit lookup trace   look at it
  upload download secret login logout kv     files and secrets, registries
  logs exec run attach cp port-forward top images docker   near the containers
  cordon uncordon drain node virtualip network expose hide   nodes and links
  up install uninstall doctor                run Reeve here, or on many hosts
  server token init controller agent         the parts of it, by hand
  login-cluster context person               from a machine of your own
  explain schema completion version admin    know more; rare acts

For many hosts: `reeve install` on each of them.
How to write manifests: reeve explain service.spec
";

const EXIT_CODES: &str = "\
For many hosts: `reeve install` on each of them.
How to write manifests: reeve explain service.spec
Exit codes: 0 done, 1 differences (plan --exit-code), 2 usage, 3 unreachable,
            4 conflict, 6 failed, 7 no node fits, 9 invalid, 124 timed out";

const FIRST_SCREEN: &str = "{about}

{usage-heading} {usage}{after-help}

{all-args}";

/// Runs containers on a fleet of Docker hosts as declared in etcd.
#[derive(Debug, Parser)]
#[command(name = "reeve", version, about, after_help = EXIT_CODES, help_template = FIRST_SCREEN, disable_help_subcommand = true, max_term_width = 80)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// Flags of every verb.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Work with this cluster, of those in `reeve context ls`; `here` for what runs on this host
    #[arg(
        long,
        global = true,
        env = "REEVE_CONTEXT",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub context: Option<ResourceName>,
    /// The store's client URLs [default: the context's, else the running `reeve up`, else http://127.0.0.1:2379]
    #[arg(
        long,
        global = true,
        env = "REEVE_ETCD",
        hide_env_values = true,
        value_name = "URL,URL"
    )]
    pub etcd: Option<String>,
    /// The prefix of all keys
    #[arg(long, global = true, env = "REEVE_PREFIX", hide_env_values = true, default_value = schemas::keys::DEFAULT_ROOT, value_name = "PREFIX")]
    pub prefix: Root,
    /// The CA of the store's certificates, PEM
    #[arg(long, global = true, env = "REEVE_CA", hide_env_values = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// This client's certificate, PEM
    #[arg(
        long,
        global = true,
        env = "REEVE_CERT",
        hide_env_values = true,
        value_name = "FILE",
        requires = "key"
    )]
    pub cert: Option<PathBuf>,
    /// The key of --cert, PEM
    #[arg(
        long,
        global = true,
        env = "REEVE_KEY",
        hide_env_values = true,
        value_name = "FILE",
        requires = "cert"
    )]
    pub key: Option<PathBuf>,
    /// Where `up` and `agent` keep their data
    #[arg(
        long,
        global = true,
        env = "REEVE_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub data_dir: Option<PathBuf>,
    /// The namespace [default: default]
    #[arg(
        short,
        long,
        global = true,
        env = "REEVE_NAMESPACE",
        hide_env_values = true,
        value_name = "NAME"
    )]
    pub namespace: Option<Namespace>,
    /// What to print
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// When to colour; NO_COLOR is respected
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        hide_possible_values = true
    )]
    pub color: Color,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a store a cluster, once
    #[command(
        after_help = "Example: reeve init --etcd https://10.0.0.1:2379 --ca ca.pem --cert me.pem --key me.key\n         reeve init --network 10.99.0.0/16"
    )]
    Init(network::InitArgs),
    /// Run a controller; any number may run, one leads
    #[command(
        after_help = "Example: reeve controller --etcd https://10.0.0.1:2379,https://10.0.0.2:2379 \\\n           --ca ca.pem --cert controller.pem --key controller.key"
    )]
    Controller(ControllerArgs),
    /// Run the agent of this host
    #[command(
        after_help = "Example: reeve agent --etcd https://10.0.0.1:2379 --node n1 --label zone=a \\\n           --ca ca.pem --cert n1.pem --key n1.key"
    )]
    Agent(AgentArgs),
    /// Run everything in one process, with a store of its own
    #[command(after_help = "Example: reeve up\nCtrl-C stops Reeve and leaves the containers running.")]
    Up(UpArgs),
    /// Run a seed: a member of the cluster's store, and a controller
    #[command(
        after_help = "On every seed, in any order; Ctrl-C ends it and leaves the containers running. The token is from `reeve token install`.\nExample: reeve server --seeds 10.0.0.1,10.0.0.2,10.0.0.3 --token-file token"
    )]
    Server(seats::ServerArgs),
    /// Make this host a seed or a node of a cluster, and keep it one
    #[command(
        after_help = "On every host, in any order, at once or one by one; Ctrl-C takes back what it made. The token is from\n`reeve token install`, or for later nodes from `reeve token create`.\nExample: reeve install --seeds 10.0.0.1,10.0.0.2,10.0.0.3 --token-file token"
    )]
    Install(host::InstallArgs),
    /// Look whether all is well: this host, the store, certificates, clocks, nodes
    #[command(
        after_help = "Each line says ok, warn or bad, and what to do. Ends with 0 when nothing is bad, else with 6; also where there is no cluster.\nExample: reeve doctor"
    )]
    Doctor(host::DoctorArgs),
    /// Take this host out of the cluster, and what was installed away
    #[command(
        after_help = "A node is retired first, a seed goes out of the store's members. Data stays unless --purge-data is given.\nExample: reeve uninstall"
    )]
    Uninstall(host::UninstallArgs),
    /// Make the tokens that hosts and people join with
    #[command(subcommand)]
    Token(seats::TokenVerb),
    /// Log in to a cluster of seeds from this machine, which need not belong to it
    #[command(
        after_help = "On a seed, `reeve token create --person NAME --rights RIGHTS` prints the token. The key is made here and stays here,\nin ~/.config/reeve; the certificate is renewed by itself whenever commands are used.\nExample: reeve login-cluster --seeds 10.0.0.1,10.0.0.2,10.0.0.3 --token-file token --name prod"
    )]
    LoginCluster(contexts::LoginClusterArgs),
    /// Choose between the clusters that this user has logged in to
    #[command(subcommand)]
    Context(contexts::ContextVerb),
    /// See and end what people may do in the cluster
    #[command(subcommand)]
    Person(contexts::PersonVerb),
    /// Write documents, show the plan, and wait until they are in force
    #[command(after_help = "Example: reeve apply -f web.yaml")]
    Apply(ApplyArgs),
    /// Show what `apply` would change
    #[command(after_help = "Example: reeve plan -f web.yaml --exit-code")]
    Plan(PlanArgs),
    /// List resources and instances
    #[command(
        after_help = "Kinds: services (svc), nodes (no), configfiles (cf), registries (reg), secrets (sec),\n       commands (cmd), instances (in), events (ev), all\nExample: reeve get svc -A -o wide"
    )]
    Get(GetArgs),
    /// Say everything about one resource
    #[command(after_help = "Example: reeve describe service web")]
    Describe(DescribeArgs),
    /// Delete resources, and wait until they are gone
    #[command(after_help = "Example: reeve delete service web\n         reeve delete services --all --yes")]
    Delete(DeleteArgs),
    /// Put a file into the store, for services to mount
    #[command(
        after_help = "Up to 8 MiB, of any kind. Services mount it by its name: `reeve explain service.spec.container.files`.\nThose that do are replaced, one instance after the other; that is waited for.\nExample: reeve upload nginx.conf\n         reeve upload ./logo.png shop-logo"
    )]
    Upload(files::UploadArgs),
    /// Get a file out of the store, byte for byte
    #[command(
        after_help = "Example: reeve download nginx-conf > nginx.conf\n         reeve download nginx-conf old.conf --edition 3"
    )]
    Download(files::DownloadArgs),
    /// List files, with their editions and users
    #[command(after_help = "Example: reeve files -A\n         reeve files undo nginx-conf")]
    Files(files::FilesArgs),
    /// Passwords, keys and tokens: set, listed, and never shown
    #[command(subcommand)]
    Secret(secrets::SecretVerb),
    /// Log in to a registry: the password is checked there, and kept sealed
    #[command(
        after_help = "The password is asked for, or read with --password-stdin. Logging in again renews it; the next pull uses it.\nExample: reeve login registry.example:5000 --user ci\n         reeve login docker.io --user me --password-stdin < token"
    )]
    Login(registry::LoginArgs),
    /// Forget an account of a registry, and its password
    #[command(after_help = "Example: reeve logout registry.example:5000")]
    Logout(registry::LogoutArgs),
    /// List registries and accounts: whether they work, and who uses them
    #[command(
        visible_alias = "users",
        after_help = "Example: reeve registries -o wide\n         reeve registries tags registry.example:5000/team/app"
    )]
    Registries(registry::RegistriesArgs),
    /// The cluster's network: addresses, links between nodes, names
    #[command(subcommand)]
    Network(network::NetworkVerb),
    /// Addresses that one of several nodes holds
    #[command(subcommand, name = "virtualip", visible_alias = "vip")]
    VirtualIp(virtual_ip::VirtualIpVerb),
    /// Show what a name leads to, as the nodes' own servers answer it
    #[command(
        after_help = "Ends with 4 where there is no answer, or a node's differs from what the store has.\nExample: reeve lookup db\n         reeve lookup db.shop --all-nodes\n         reeve lookup _sql._tcp.db SRV --from web"
    )]
    Lookup(seen::LookupArgs),
    /// Show which hop or rule stops a connection in the cluster's network
    #[command(
        after_help = "Ends with 0 where it passes, and with 4 where something stops it.\nExample: reeve trace web.1 db.1:5432\n         reeve trace shop/web.1 db.1:53/udp\n         reeve trace node:n1 10.210.2.2:80"
    )]
    Trace(seen::TraceArgs),
    /// Let hosts' own processes reach and resolve the cluster's network
    #[command(
        after_help = "It stands in the node's resource, as `spec.exposed`. Hosts are hidden unless exposed.\nExample: reeve expose\n         reeve expose --node n1 --node n2"
    )]
    Expose(seen::ExposeArgs),
    /// Keep hosts' own processes, but root's, away from the cluster's network
    #[command(after_help = "Health checks, published ports and what was begun go on.\nExample: reeve hide --all-nodes")]
    Hide(seen::ExposeArgs),
    /// Check documents, without a store
    #[command(after_help = "Example: reeve validate -f manifests/")]
    Validate(ValidateArgs),
    /// Explain a key of a manifest
    #[command(after_help = "Example: reeve explain service.spec.container.ports")]
    Explain(ExplainArgs),
    /// Print a kind's JSON Schema
    #[command(after_help = "Example: reeve schema service > service.json")]
    Schema(SchemaArgs),
    /// Show the whole cluster
    #[command(visible_alias = "st", after_help = "Example: reeve status --watch")]
    Status(WatchArgs),
    /// Show what happened
    #[command(visible_alias = "ev", after_help = "Example: reeve events -w")]
    Events(EventsArgs),
    /// Keep small values of your own in the cluster
    #[command(subcommand)]
    Kv(kv::KvVerb),
    /// Show what people did through `reeve`: who, what, when, and how it ended
    #[command(
        after_help = "Kept for 90 days. Who has a certificate of the cluster is named by it; others, as they call themselves, are marked `told`.\nExample: reeve audit --since 1d\n         reeve audit --by anna -o json"
    )]
    Audit(AuditArgs),
    /// Show what instances write
    #[command(
        after_help = "Over all nodes, each line whole; -f goes on over restarts, moves and changes.\nExample: reeve logs -f web\n         reeve logs web.2 --since 5m --tail 100"
    )]
    Logs(near::LogsArgs),
    /// Run a command in an instance's container
    #[command(
        after_help = "Its exit code becomes this one's. Nodes allow it where their agent runs with --allow-exec, and record it.\nExample: reeve exec -it web.2 -- sh"
    )]
    Exec(near::ExecArgs),
    /// Run a command that is declared by name, or list them
    #[command(
        after_help = "Declared as resources of kind Command: `reeve explain command.spec`. In one instance its exit code is this one's.\nExample: reeve run\n         reeve run flush-cache --param mode=soft\n         reeve run tidy --on n1,n2"
    )]
    Run(near::RunArgs),
    /// Run Docker's own program on nodes, in parallel, through their agents
    #[command(
        after_help = "Off until a node's policy says `nodeCommands: [docker]`; recorded there. With one node its exit code is this one's.\nExample: reeve docker --nodes n1,n2 -- ps"
    )]
    Docker(near::DockerArgs),
    /// Join an instance's own process; Ctrl-P Ctrl-Q leaves it
    #[command(after_help = "Example: reeve attach web.2")]
    Attach(near::AttachArgs),
    /// Show what instances or nodes use
    #[command(after_help = "Example: reeve top nodes")]
    Top(near::TopArgs),
    /// List the images on the nodes, and who uses them
    #[command(after_help = "Example: reeve images --nodes n1,n2")]
    Images(near::ImagesArgs),
    /// Copy files into and out of an instance's container
    #[command(after_help = "Example: reeve cp web.2:/etc/nginx nginx\n         reeve cp page.html web.2:/www/")]
    Cp(near::CopyArgs),
    /// Lead a port of this machine to an instance's
    #[command(after_help = "Example: reeve port-forward web.2 8080:80")]
    PortForward(near::ForwardArgs),
    /// Change how many instances a service has
    #[command(after_help = "Example: reeve scale web=3\n         reeve scale web --replicas 3")]
    Scale(ScaleArgs),
    /// Place nothing new on nodes
    #[command(after_help = "Example: reeve cordon n1")]
    Cordon(CordonArgs),
    /// Place on nodes again
    #[command(after_help = "Example: reeve uncordon n1")]
    Uncordon(CordonArgs),
    /// Move everything off nodes, one instance at a time
    #[command(after_help = "Example: reeve drain n1")]
    Drain(DrainArgs),
    /// Take nodes out of the cluster
    #[command(subcommand)]
    Node(NodeVerb),
    /// Rare acts
    #[command(subcommand)]
    Admin(AdminVerb),
    /// Answer containers' questions about names: the agent starts it
    #[command(hide = true)]
    Names(names::NamesArgs),
    /// Carry connections to services: the agent starts it
    #[command(hide = true)]
    Relay(relay::RelayArgs),
    /// Carry the packets of an encrypted link: the agent starts it
    #[command(hide = true)]
    Wireguard(carry::WireguardArgs),
    /// Print the version
    Version,
    /// Print a completion script
    #[command(after_help = "Example: reeve completion bash > /etc/bash_completion.d/reeve")]
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Manifests to read.
#[derive(Clone, Debug, Args)]
pub struct Files {
    /// A file, a directory of .yaml, .yml and .json files, or - for standard input; repeatable
    #[arg(short = 'f', long = "file", value_name = "PATH", required = true)]
    pub files: Vec<String>,
}

/// How to wait.
#[derive(Clone, Debug, Args)]
pub struct Waiting {
    /// How long to wait
    #[arg(long, value_parser = duration, default_value = "5m", value_name = "DURATION")]
    pub timeout: Duration,
    /// Return as soon as it is written
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    pub files: Files,
    #[command(flatten)]
    pub waiting: Waiting,
    /// Do not ask before instances are removed
    #[arg(short, long)]
    pub yes: bool,
    /// Only if the document's last write is this store revision; 0: only if it does not exist
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(0..))]
    pub if_revision: Option<i64>,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub files: Files,
    /// End with 1 when there are differences
    #[arg(long)]
    pub exit_code: bool,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    /// What to list; KIND or KIND/NAME
    #[arg(value_name = "KIND")]
    pub kind: Option<String>,
    /// Only these
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Only with these labels: `app=web,tier!=cache,!old`
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Follow changes
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// What; KIND or KIND/NAME
    #[arg(value_name = "KIND")]
    pub kind: String,
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["kind", "files"]))]
pub struct DeleteArgs {
    /// What; KIND or KIND/NAME
    #[arg(value_name = "KIND", conflicts_with = "files")]
    pub kind: Option<String>,
    #[arg(value_name = "NAME", conflicts_with = "files")]
    pub names: Vec<String>,
    /// What these manifests declare
    #[arg(short = 'f', long = "file", value_name = "PATH")]
    pub files: Vec<String>,
    /// All of the kind in the namespace
    #[arg(long, requires = "kind", conflicts_with = "names")]
    pub all: bool,
    /// With --all: in all namespaces
    #[arg(short = 'A', long, requires = "all")]
    pub all_namespaces: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Also files and secrets that services use: those keep the edition they have
    #[arg(long)]
    pub force: bool,
    /// What does not exist is no failure
    #[arg(long)]
    pub ignore_not_found: bool,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct ValidateArgs {
    #[command(flatten)]
    pub files: Files,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A kind, and a path into it
    #[arg(value_name = "KIND.PATH")]
    pub path: String,
}

#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// A kind, or `all` for one schema of every kind
    pub kind: String,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Follow changes
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only about this: `service/web`, `web.2`, `node/n1`
    #[arg(value_name = "ABOUT")]
    pub about: Option<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// The ordinary steps of every change, too
    #[arg(long)]
    pub all: bool,
    /// Follow
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Only what is younger than this
    #[arg(long, value_parser = duration, default_value = "7d", value_name = "AGE")]
    pub since: Duration,
    /// Only of this person
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
}

#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// SERVICE, or SERVICE=N
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// How many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub replicas: Option<u32>,
    /// Do not ask before instances are removed
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct CordonArgs {
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<NodeName>,
    /// Why, for those who ask later
    #[arg(long)]
    pub note: Option<String>,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<NodeName>,
    /// Why, for those who ask later
    #[arg(long)]
    pub note: Option<String>,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// Retire nodes: what they ran goes elsewhere at once
    #[command(after_help = "Example: reeve node rm n3")]
    Rm(NodeRmArgs),
    /// Say that the hosts of nodes that are away are off: what they ran goes elsewhere at once
    #[command(
        name = "confirm-lost",
        after_help = "For when you know, and the controller does not: it waits for as long as each service says (`replaceAfter`), and replaces nothing while more than half of the nodes are away. It counts until the node is back, which then gets nothing new until `reeve uncordon`.\nExample: reeve node confirm-lost n3"
    )]
    ConfirmLost(ConfirmLostArgs),
    /// Give the name and place of a host that is gone to another: shuts the old one out, and prints a token for the new one
    #[command(
        after_help = "On a seed, as root, or with the right `admin` from elsewhere. What to run on the new host is said on standard error.\nExample: reeve node replace n4 > token"
    )]
    Replace(authority::ReplaceArgs),
    /// Write what this host's agent keeps of the cluster to a file, for `reeve admin rebuild`
    #[command(
        after_help = "On the node, as the agent's user; the agent may run or not. For the day when every store is gone.\nExample: ssh n1 reeve node copy > n1.copy"
    )]
    Copy(CopyArgs),
    /// Run a program on nodes themselves, in parallel, through their agents
    #[command(
        after_help = "Off until a node's policy says `nodeCommands: [exec]`; recorded there. With one node its exit code is this one's.\nExample: reeve node exec --nodes n1,n2 -- df -h /var/lib"
    )]
    Exec(near::NodeExecArgs),
}

#[derive(Debug, Args)]
pub struct ConfirmLostArgs {
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<NodeName>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Why, for those who ask later
    #[arg(long)]
    pub note: Option<String>,
}

#[derive(Debug, Args)]
pub struct NodeRmArgs {
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<NodeName>,
    /// Shut it out at once, whatever still runs there: for a host that is lost or in wrong hands
    #[arg(long)]
    pub now: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Why, for those who ask later
    #[arg(long)]
    pub note: Option<String>,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Subcommand)]
pub enum AdminVerb {
    /// Say yes to removals that the breaker holds
    #[command(
        after_help = "`reeve status` shows the digest; its first 8 digits are enough.\nExample: reeve admin ack 3f1c0a77"
    )]
    Ack { digest: String },
    /// Go on from a store that has gone back in time, such as a restored backup
    #[command(
        name = "accept-store",
        after_help = "Controllers and agents hold everything when the store is older than what they have seen.\nExample: reeve admin accept-store"
    )]
    AcceptStore(AcceptArgs),
    /// Write all that the store holds of the cluster to a file, at one moment
    #[command(
        after_help = "It only reads, and may be made while the cluster works. Values that are sealed stay sealed in it.\nExample: reeve admin backup /var/backups/reeve.backup\n         reeve admin backup - | ssh host 'cat > reeve.backup'"
    )]
    Backup(BackupArgs),
    /// Put what a backup holds into an empty store, or back into the cluster's own; nothing is stopped
    #[command(
        after_help = "The whole file is checked first. Interrupted, run it again. Where a `reeve up` that does not run kept its store, that is written (--data-dir).\nExample: reeve admin restore /var/backups/reeve.backup"
    )]
    Restore(RestoreArgs),
    /// Make the cluster again from what its agents keep, when every store is gone and there is no backup
    #[command(
        after_help = "Copies are files of `reeve node copy`, or data directories of agents. What they cannot say is told first. In a cluster of seeds they count as controllers signed them (--trust).\nExample: reeve admin rebuild n1.copy n2.copy n3.copy"
    )]
    Rebuild(RebuildArgs),
    /// Remove an instance that runs on a node though no record knows it
    #[command(
        name = "remove-orphan",
        after_help = "Shown as Orphaned by `reeve get instances -A`. Its container is stopped and removed; volumes are kept.\nExample: reeve admin remove-orphan n1 web.2"
    )]
    RemoveOrphan(OrphanArgs),
    /// Move the cluster to another store; no container is restarted
    #[command(
        after_help = "Stop `reeve up` or the controllers and agents afterwards, and start them with the new --etcd.\nExample: reeve admin migrate-store --to https://10.0.0.1:2379 --to-ca ca.pem"
    )]
    MigrateStore(MigrateArgs),
    /// Replace the cluster's authority, and with it every certificate; no container is restarted
    #[command(
        name = "rotate-authority",
        after_help = "On a seed, as root. The seeds do it by themselves; run it again to follow it.\nExample: reeve admin rotate-authority"
    )]
    RotateAuthority(authority::RotateArgs),
    /// Run etcd's own program on the cluster's store, with the certificates it wants
    #[command(
        after_help = "etcdctl must be on this machine; it is told where the store is. Its exit code is ours.\nWhat it writes goes past every check: look with it, and change with reeve.\nExample: reeve admin etcdctl -- member list -w table\n         reeve admin etcdctl -- endpoint status --cluster -w table"
    )]
    Etcdctl(EtcdctlArgs),
}

#[derive(Debug, Args)]
pub struct EtcdctlArgs {
    /// What etcdctl is to do
    #[arg(
        value_name = "ARG",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub args: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct AcceptArgs {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Where to write; `-` is standard output. A file that is there is replaced when the new one is whole
    #[arg(value_name = "FILE")]
    pub file: String,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// What `reeve admin backup` wrote; `-` is standard input
    #[arg(value_name = "FILE")]
    pub file: String,
    /// Write over the store of the same cluster, damaged or not: it then declares what the file does
    #[arg(long)]
    pub over: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// Files of `reeve node copy`, or data directories of agents
    #[arg(value_name = "COPY", required = true)]
    pub copies: Vec<PathBuf>,
    /// Where the authorities are that copies must be signed by: the data directory of a seed, or `member` in an agent's
    #[arg(long, value_name = "DIR")]
    pub trust: Option<PathBuf>,
    /// Where two nodes contradict each other, this one is right
    #[arg(long, value_name = "NODE")]
    pub believe: Option<NodeName>,
    /// Write over the store of the same cluster, such as one that seeds have begun anew
    #[arg(long)]
    pub over: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Where to write; `-` is standard output
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: String,
}

#[derive(Debug, Args)]
pub struct OrphanArgs {
    #[arg(value_name = "NODE")]
    pub node: NodeName,
    /// `web.2`, or `NAMESPACE/web.2`
    #[arg(value_name = "INSTANCE")]
    pub instance: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// The client URLs of the new store
    #[arg(long, value_name = "URL,URL")]
    pub to: String,
    /// The CA of the new store's certificates, PEM
    #[arg(long, value_name = "FILE")]
    pub to_ca: Option<PathBuf>,
    /// The client certificate for the new store, PEM
    #[arg(long, value_name = "FILE", requires = "to_key")]
    pub to_cert: Option<PathBuf>,
    /// The key of --to-cert, PEM
    #[arg(long, value_name = "FILE", requires = "to_cert")]
    pub to_key: Option<PathBuf>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// How a long-running process logs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Which log lines: `info`, `debug`, `agent=debug,warn`
    #[arg(
        long,
        env = "REEVE_LOG",
        hide_env_values = true,
        default_value = "info",
        value_name = "FILTER"
    )]
    pub log: String,
    /// How log lines look, on standard error
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

#[derive(Debug, Args)]
pub struct ControllerArgs {
    /// Where /metrics, /healthz, /readyz and /sd are served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9463")]
    pub metrics: SocketAddr,
    /// HOST:PORT under which others reach that address [default: the address itself]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// This controller's name [default: HOST-PID]
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The seeds of a cluster to join, by address or name, instead of --etcd
    #[arg(long, value_name = "HOST,HOST", env = "REEVE_SEEDS", hide_env_values = true)]
    pub seeds: Option<membership::seeds::Seeds>,
    #[command(flatten)]
    pub token: seats::TokenArgs,
    /// The node's name [default: the host's name]
    #[arg(long, value_name = "NAME", env = "REEVE_NODE", hide_env_values = true)]
    pub node: Option<NodeName>,
    /// The Docker engine [default: unix:///var/run/docker.sock]
    #[arg(long, value_name = "HOST", env = "DOCKER_HOST", hide_env_values = true)]
    pub docker: Option<String>,
    /// A label for placement; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// A role for placement, where no Node resource names any; repeatable
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<ResourceName>,
    /// The address or name under which the outside reaches this node; `auto`: the one that leads to the seeds
    #[arg(long, value_name = "IP|NAME|auto")]
    pub public_address: Option<String>,
    /// Where /metrics, /healthz and /readyz are served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    pub metrics: SocketAddr,
    /// HOST:PORT under which Prometheus reaches that address [default: the address itself]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    #[command(flatten)]
    pub api: near::ApiArgs,
    /// What assignments may ask of this node [default: /etc/reeve/policy.yaml, else the built-in policy]
    #[arg(long, value_name = "FILE", env = "REEVE_POLICY", hide_env_values = true)]
    pub policy: Option<PathBuf>,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Args)]
pub struct UpArgs {
    /// Where the store listens, for `reeve` and `etcdctl`: a loopback address, or `auto` for a free port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2379")]
    pub listen: String,
    /// The node's name [default: the host's name]
    #[arg(long, value_name = "NAME", env = "REEVE_NODE", hide_env_values = true)]
    pub node: Option<NodeName>,
    /// The Docker engine [default: unix:///var/run/docker.sock]
    #[arg(long, value_name = "HOST", env = "DOCKER_HOST", hide_env_values = true)]
    pub docker: Option<String>,
    /// A label for placement; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Where the controller's /metrics, /healthz, /readyz and /sd are served; `auto` for a free port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9463")]
    pub metrics: String,
    /// Where the agent's /metrics are served; `auto` for a free port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    pub agent_metrics: String,
    /// Do not allow `reeve exec`, `attach`, `cp` and `port-forward`
    #[arg(long)]
    pub no_exec: bool,
    /// What assignments may ask of this node [default: /etc/reeve/policy.yaml, else the built-in policy]
    #[arg(long, value_name = "FILE", env = "REEVE_POLICY", hide_env_values = true)]
    pub policy: Option<PathBuf>,
    /// Which log lines: `info`, `debug`, `agent=debug,warn`
    #[arg(
        long,
        env = "REEVE_LOG",
        hide_env_values = true,
        default_value = "warn",
        value_name = "FILTER",
        help_heading = "Logging"
    )]
    pub log: String,
    /// How log lines look, on standard error
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT", help_heading = "Logging")]
    pub log_format: LogFormat,
}

fn duration(text: &str) -> Result<Duration, String> {
    let span: Span = text
        .parse()
        .map_err(|error: schemas::units::UnitError| error.to_string())?;
    Ok(Duration::from_millis(span.millis))
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    if key.is_empty() || key.len() > 317 || value.len() > 63 {
        return Err("a key has 1 to 317 characters, a value at most 63".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Ends as clap does; where the command line asks for JSON, a command line that is wrong is told as JSON, too.
pub fn refused(error: &clap::Error, said: impl Iterator<Item = OsString>) -> ExitCode {
    if !error.use_stderr() || !asks_for_json(said) {
        error.exit();
    }
    output::complain(&usage(error).to_json());
    Exit::Usage.into()
}

/// A refused command line as our error: clap's first sentence, its tips, and how it is meant.
fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("the command line is wrong");
    let mut failure = Failure::usage(first.strip_prefix("error: ").unwrap_or(first));
    let mut help = Vec::new();
    for line in lines {
        match line.strip_prefix("tip: ").or(line.strip_prefix("Usage: ")) {
            Some(line) => help.push(line.to_owned()),
            None if line.starts_with("For more information") => {}
            None => failure = failure.detail(line),
        }
    }
    if help.is_empty() {
        help.push("see `reeve --help`".to_owned());
    }
    failure.help(help.join("; "))
}

/// Whether `-o json` is among the arguments, however it is spelled: they could not be parsed, so this only looks.
fn asks_for_json(said: impl Iterator<Item = OsString>) -> bool {
    let said: Vec<String> = said
        .map(|arg| arg.to_string_lossy().into_owned())
        .take_while(|arg| arg != "--")
        .collect();
    let one = |arg: &String| matches!(arg.as_str(), "-ojson" | "-o=json" | "--output=json");
    let two = |pair: &[String]| matches!(pair[0].as_str(), "-o" | "--output") && pair[1] == "json";
    said.iter().any(one) || said.windows(2).any(two)
}

/// `web=3`, or `web` with `--replicas 3`.
pub fn scale_target(args: &ScaleArgs) -> Result<(ResourceName, u32), String> {
    let (name, inline) = match args.service.split_once('=') {
        Some((name, number)) => {
            let number = number.parse::<u32>().ok().filter(|n| *n <= 100_000);
            (
                name,
                Some(number.ok_or("write a whole number from 0 to 100,000 after the `=`")?),
            )
        }
        None => (args.service.as_str(), None),
    };
    let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
    let name = name
        .parse()
        .map_err(|error: schemas::names::NameError| error.to_string())?;
    match (inline, args.replicas) {
        (Some(number), None) | (None, Some(number)) => Ok((name, number)),
        (Some(_), Some(_)) => Err("say how many once: `web=3` or `--replicas 3`".to_owned()),
        (None, None) => Err("say how many: `reeve scale web=3`".to_owned()),
    }
}

pub mod authority;
pub mod contexts;
pub mod files;
pub mod host;
pub mod kv;
pub mod near;
pub mod network;
pub mod registry;
pub mod seats;
pub mod secrets;
pub mod seen;
#[cfg(test)]
mod tests;
pub mod virtual_ip;
