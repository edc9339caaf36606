//! The `reeve` binary: reads the command line, runs one verb, prints why it failed, and ends with its exit code. Nothing is
//! started before a verb needs it: `version` and `validate` run without a runtime, a store or a thread.

mod admin;
mod apply;
mod args;
mod audit;
mod backup;
mod carry;
mod check;
mod commands;
mod connect;
mod contexts;
mod daemons;
mod delete;
mod describe;
mod edit;
mod etcdctl;
mod failure;
mod files;
mod follow;
mod get;
mod host;
mod kv;
mod logging;
mod manifest;
mod names;
mod near;
mod network;
mod nodes;
mod orphan;
mod output;
mod persons;
mod policies;
mod preview;
mod rebuild;
mod registry;
mod relay;
mod replace;
mod restore;
mod rotate;
mod rows;
mod sealing;
mod seats;
mod secrets;
mod select;
mod status;
mod up;
mod view;
mod virtual_ips;
mod wait;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Verb};
use failure::{Exit, Failure};
use output::Format;

/// How a verb ends.
pub type Verdict = Result<Exit, Failure>;

fn main() -> ExitCode {
    let Cli { common, verb } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return args::refused(&error, std::env::args_os()),
    };
    common.color.choose();
    let Some(verb) = verb else {
        output::print(args::START);
        return Exit::Done.into();
    };
    match run(&common, &verb) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            let failure = contexts::explained(&common, failure);
            output::complain(&match common.output {
                Format::Json => failure.to_json(),
                Format::Table | Format::Wide | Format::Yaml | Format::Name => failure.render(output::look()),
            });
            failure.exit.into()
        }
    }
}

/// What handles passwords leaves no core dump, and no other process of its user looks into it. It ends with this process:
/// programs that it starts have their own.
fn keep_memory_private(verb: &Verb) {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    let handles = matches!(
        verb,
        Verb::Agent(_)
            | Verb::Controller(_)
            | Verb::Server(_)
            | Verb::Up(_)
            | Verb::Secret(_)
            | Verb::Login(_)
            | Verb::Wireguard(_)
    );
    if handles {
        // A kernel that knows no such thing is no reason to do nothing.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

fn run(common: &args::Common, verb: &Verb) -> Verdict {
    keep_memory_private(verb);
    audit::expect(common, verb);
    match verb {
        Verb::Version => check::version(common),
        Verb::Completion { shell } => check::completion(*shell),
        Verb::Validate(args) => check::validate(common, args),
        Verb::Explain(args) => check::explain(args),
        Verb::Schema(args) => check::schema(args),
        Verb::Init(args) => ask(admin::init(common, args)),
        Verb::Apply(args) => ask(apply::apply(common, args)),
        Verb::Plan(args) => ask(apply::plan(common, args)),
        Verb::Get(args) => ask(get::get(common, args)),
        Verb::Describe(args) => ask(describe::describe(common, args)),
        Verb::Delete(args) => ask(delete::delete(common, args)),
        Verb::Status(args) => ask(status::status(common, args)),
        Verb::Upload(args) => ask(files::upload(common, args)),
        Verb::Download(args) => ask(files::download(common, args)),
        Verb::Files(args) => ask(files::files(common, args)),
        Verb::Secret(verb) => ask(secrets::secret(common, verb)),
        Verb::Login(args) => ask(registry::login(common, args)),
        Verb::Logout(args) => ask(registry::logout(common, args)),
        Verb::Registries(args) => ask(registry::registries(common, args)),
        Verb::Events(args) => ask(status::events(common, args)),
        Verb::Kv(verb) => ask(kv::kv(common, verb)),
        Verb::Audit(args) => ask(audit::audit(common, args)),
        Verb::Scale(args) => ask(apply::scale(common, args)),
        Verb::Cordon(args) => ask(nodes::cordon(common, args)),
        Verb::Uncordon(args) => ask(nodes::uncordon(common, args)),
        Verb::Drain(args) => ask(nodes::drain(common, args)),
        Verb::Node(verb) => ask(nodes::node(common, verb)),
        Verb::Docker(args) => ask(near::docker(common, args)),
        Verb::Network(verb) => ask(network::network(common, verb)),
        Verb::VirtualIp(verb) => ask(virtual_ips::virtual_ip(common, verb)),
        Verb::Lookup(args) => ask(near::lookup(common, args)),
        Verb::Trace(args) => ask(near::trace(common, args)),
        Verb::Expose(args) => ask(near::expose(common, args)),
        Verb::Hide(args) => ask(near::hide(common, args)),
        Verb::Admin(verb) => ask(admin::admin(common, verb)),
        Verb::Logs(args) => ask(near::logs(common, args)),
        Verb::Exec(args) => ask(near::exec(common, args)),
        Verb::Run(args) => ask(near::run(common, args)),
        Verb::Attach(args) => ask(near::attach(common, args)),
        Verb::Top(args) => ask(near::top(common, args)),
        Verb::Images(args) => ask(near::images(common, args)),
        Verb::Cp(args) => ask(near::copy(common, args)),
        Verb::PortForward(args) => ask(near::forward(common, args)),
        Verb::Controller(args) => serve(daemons::controller(common, args)),
        Verb::Agent(args) => serve(daemons::agent(common, args)),
        Verb::Up(args) => serve(up::up(common, args)),
        Verb::Server(args) => serve(seats::server(common, args)),
        Verb::Names(args) => names::names(args),
        Verb::Relay(args) => relay::relay(args),
        Verb::Wireguard(args) => carry::wireguard(args),
        Verb::Uninstall(args) => ask(host::uninstall::uninstall(common, args)),
        Verb::Doctor(args) => ask(host::doctor::doctor(common, args)),
        Verb::Install(args) => ask(host::install::install(common, args)),
        Verb::Token(verb) => ask(seats::token_verb(common, verb)),
        Verb::LoginCluster(args) => ask(contexts::login(common, args)),
        Verb::Context(verb) => contexts::context(common, verb),
        Verb::Person(verb) => ask(persons::person(common, verb)),
    }
}

fn cannot_start(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, "cannot start").because(error)
}

/// Verbs that talk to the store and end: one thread is enough.
fn ask(verb: impl Future<Output = Verdict>) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| cannot_start(&error))?.block_on(async {
        let verdict = verb.await;
        match &verdict {
            Ok(exit) => audit::end(*exit as u8, false).await,
            Err(failure) => audit::end(failure.exit as u8, failure.denied).await,
        }
        verdict
    })
}

/// Verbs that run until a signal.
fn serve(verb: impl Future<Output = Verdict>) -> Verdict {
    // A thread for each core of a large host would cost memory, and win nothing: what takes long waits for others.
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().min(4));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| cannot_start(&error))?;
    let verdict = runtime.block_on(verb);
    // What still runs has had its time.
    runtime.shutdown_background();
    verdict
}
