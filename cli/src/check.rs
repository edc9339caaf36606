//! The verbs that need no store and no runtime: `validate`, `explain`, `schema`, `version`, `completion`.

use clap::CommandFactory;
use schemas::kinds::{self, Kind};
use serde_json::json;

use crate::args::{Cli, Common, ExplainArgs, SchemaArgs, ValidateArgs};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, print};
use crate::{Verdict, manifest};

pub fn validate(common: &Common, args: &ValidateArgs) -> Verdict {
    let admitted = match manifest::read(&args.files.files, common.namespace.as_ref()) {
        Ok(admitted) => admitted,
        // What is found is what was asked for: it goes to standard output for machines.
        Err(failure) if common.output == Format::Json && failure.exit == Exit::Invalid => {
            print(&failure.to_json());
            return Ok(Exit::Invalid);
        }
        Err(failure) => return Err(failure),
    };
    match common.output {
        Format::Table | Format::Wide => {
            let (number, verb) = (admitted.len(), if admitted.len() == 1 { "is" } else { "are" });
            print(&format!("{} {verb} valid\n", output::count(number, "document")));
        }
        Format::Name => {
            for document in &admitted {
                let key = document.key();
                print(&format!("{}/{}\n", key.kind.segment(), key.name));
            }
        }
        Format::Json | Format::Yaml => {
            let documents: Vec<_> = admitted.iter().map(|admitted| admitted.document.to_value()).collect();
            let value = json!({ "valid": true, "documents": documents });
            print(&if common.output == Format::Json {
                output::json(&value)
            } else {
                output::yaml(&value)
            });
        }
    }
    Ok(Exit::Done)
}

pub fn schema(args: &SchemaArgs) -> Verdict {
    if args.kind.eq_ignore_ascii_case("all") {
        print(&output::json(&kinds::combined()));
        return Ok(Exit::Done);
    }
    print(&output::json(kind(&args.kind)?.schema()));
    Ok(Exit::Done)
}

pub fn version(common: &Common) -> Verdict {
    let version = env!("CARGO_PKG_VERSION");
    match common.output {
        Format::Json | Format::Yaml => {
            let value = json!({ "version": version, "apiVersion": schemas::meta::API_VERSION });
            print(&if common.output == Format::Json {
                output::json(&value)
            } else {
                output::yaml(&value)
            });
        }
        Format::Table | Format::Wide | Format::Name => print(&format!("reeve {version}\n")),
    }
    Ok(Exit::Done)
}

pub fn completion(shell: clap_complete::Shell) -> Verdict {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "reeve", &mut script);
    print(&String::from_utf8_lossy(&script));
    Ok(Exit::Done)
}

pub fn explain(args: &ExplainArgs) -> Verdict {
    let text = schemas::explain::explain(&args.path).map_err(|error| Failure::usage(error.to_string()))?;
    print(&text);
    Ok(Exit::Done)
}

/// A kind as a person names it.
pub fn kind(text: &str) -> Result<Kind, Failure> {
    Kind::from_person(text).map_err(|error| Failure::usage(error.to_string()))
}
