//! Reading manifests: `-f` with a file, a directory or `-`. `validate`, `apply`, `plan` and `delete -f` call it; all
//! documents are admitted together, so that all problems are told at once.

use std::io::Read;
use std::path::{Path, PathBuf};

use schemas::admit::{Admitted, Input, admit_all};
use schemas::names::Namespace;

use crate::failure::{Exit, Failure};

/// The most that is read of one file: what admission takes, and one byte to notice more.
const MAX_BYTES: u64 = (16 << 20) + 1;

struct Text {
    file: Option<String>,
    bytes: Vec<u8>,
}

/// All documents of the inputs; documents without a namespace are put into the one given.
pub fn read(files: &[String], namespace: Option<&Namespace>) -> Result<Vec<Admitted>, Failure> {
    let mut texts = Vec::new();
    let mut stdin_read = false;
    for name in files {
        if name == "-" {
            if std::mem::replace(&mut stdin_read, true) {
                return Err(Failure::usage("standard input can be read once only").help("give `-f -` once"));
            }
            let bytes = bounded(std::io::stdin().lock()).map_err(|error| unreadable("standard input", &error))?;
            texts.push(Text { file: None, bytes });
        } else {
            let path = Path::new(name);
            for path in expand(path)? {
                let name = path.display().to_string();
                let file = std::fs::File::open(&path).map_err(|error| unreadable(&name, &error))?;
                let bytes = bounded(file).map_err(|error| unreadable(&name, &error))?;
                texts.push(Text {
                    file: Some(name),
                    bytes,
                });
            }
        }
    }
    let inputs: Vec<Input<'_>> = texts
        .iter()
        .map(|text| Input {
            file: text.file.as_deref(),
            bytes: &text.bytes,
        })
        .collect();
    let mut admitted = admit_all(&inputs).map_err(Failure::invalid)?;
    for document in &mut admitted {
        settle_namespace(document, namespace)?;
    }
    Ok(admitted)
}

fn bounded(from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(name: &str, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Usage, format!("cannot read {name}")).because(error)
}

/// A file itself; of a directory, its manifests by name. Directories in it are not entered.
fn expand(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let name = path.display().to_string();
    if !std::fs::metadata(path)
        .map_err(|error| unreadable(&name, &error))?
        .is_dir()
    {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| unreadable(&name, &error))? {
        let path = entry.map_err(|error| unreadable(&name, &error))?.path();
        let manifest = path
            .extension()
            .is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known));
        if manifest && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(Failure::usage(format!("{name} holds no .yaml, .yml or .json file")));
    }
    Ok(found)
}

fn settle_namespace(admitted: &mut Admitted, told: Option<&Namespace>) -> Result<(), Failure> {
    if !admitted.document.kind().namespaced() {
        return Ok(());
    }
    let metadata = admitted.document.metadata_mut();
    match (&metadata.namespace, told) {
        (Some(written), Some(told)) if written != told => {
            let file = admitted.file.as_deref().unwrap_or("standard input");
            let message = format!(
                "{file} puts `{}` into namespace `{written}`, the command line into `{told}`",
                metadata.name
            );
            return Err(Failure::usage(message).help("leave out one of the two"));
        }
        (Some(_), _) => {}
        (None, told) => metadata.namespace = Some(told.cloned().unwrap_or_default()),
    }
    Ok(())
}
