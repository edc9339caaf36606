//! The `reeve` binary: reads the command line, runs one verb, prints why it failed, and ends with its exit code. Nothing is
//! started before a verb needs it: `version` and `validate` run without a runtime, a store or a thread.

mod admin;
mod apply;
mod args;
mod check;
mod connect;
mod daemons;
mod delete;
mod describe;
mod edit;
mod failure;
mod follow;
mod get;
mod logging;
mod manifest;
mod nodes;
mod output;
mod preview;
mod rows;
mod select;
mod status;
mod up;
mod view;
mod wait;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Verb};
use failure::{Exit, Failure};
use output::Format;

/// How a verb ends.
pub type Verdict = Result<Exit, Failure>;

fn main() -> ExitCode {
    let Cli { common, verb } = Cli::parse();
    common.color.choose();
    let Some(verb) = verb else {
        output::print(&Cli::command().render_help().ansi().to_string());
        return Exit::Done.into();
    };
    match run(&common, &verb) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::complain(&match common.output {
                Format::Json => failure.to_json(),
                Format::Table | Format::Wide | Format::Yaml | Format::Name => failure.render(output::look()),
            });
            failure.exit.into()
        }
    }
}

fn run(common: &args::Common, verb: &Verb) -> Verdict {
    match verb {
        Verb::Version => check::version(common),
        Verb::Completion { shell } => check::completion(*shell),
        Verb::Validate(args) => check::validate(common, args),
        Verb::Explain(args) => check::explain(args),
        Verb::Schema(args) => check::schema(args),
        Verb::Controller(_) | Verb::Agent(_) | Verb::Up(_) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Failure::new(Exit::Failed, "cannot start").because(&error))?;
            let verdict = runtime.block_on(serve(common, verb));
            // What still runs has had its time.
            runtime.shutdown_background();
            verdict
        }
        Verb::Init
        | Verb::Apply(_)
        | Verb::Plan(_)
        | Verb::Get(_)
        | Verb::Describe(_)
        | Verb::Delete(_)
        | Verb::Status(_)
        | Verb::Events(_)
        | Verb::Scale(_)
        | Verb::Cordon(_)
        | Verb::Uncordon(_)
        | Verb::Drain(_)
        | Verb::Node(_)
        | Verb::Admin(_) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Failure::new(Exit::Failed, "cannot start").because(&error))?;
            runtime.block_on(ask(common, verb))
        }
    }
}

/// The verbs that run until a signal.
async fn serve(common: &args::Common, verb: &Verb) -> Verdict {
    match verb {
        Verb::Controller(args) => daemons::controller(common, args).await,
        Verb::Agent(args) => daemons::agent(common, args).await,
        Verb::Up(args) => up::up(common, args).await,
        _ => Err(Failure::usage("this verb does not run on")),
    }
}

/// The verbs that talk to the store and end.
async fn ask(common: &args::Common, verb: &Verb) -> Verdict {
    match verb {
        Verb::Init => admin::init(common).await,
        Verb::Apply(args) => apply::apply(common, args).await,
        Verb::Plan(args) => apply::plan(common, args).await,
        Verb::Get(args) => get::get(common, args).await,
        Verb::Describe(args) => describe::describe(common, args).await,
        Verb::Delete(args) => delete::delete(common, args).await,
        Verb::Status(args) => status::status(common, args).await,
        Verb::Events(args) => status::events(common, args).await,
        Verb::Scale(args) => apply::scale(common, args).await,
        Verb::Cordon(args) => nodes::cordon(common, args).await,
        Verb::Uncordon(args) => nodes::uncordon(common, args).await,
        Verb::Drain(args) => nodes::drain(common, args).await,
        Verb::Node(verb) => nodes::node(common, verb).await,
        Verb::Admin(verb) => admin::admin(common, verb).await,
        Verb::Version
        | Verb::Completion { .. }
        | Verb::Validate(_)
        | Verb::Explain(_)
        | Verb::Schema(_)
        | Verb::Controller(_)
        | Verb::Agent(_)
        | Verb::Up(_) => Err(Failure::usage("this verb does not ask the store")),
    }
}
