//! The keys of this host that values are sealed with and for, as files: made at the first need, for their owner alone. A
//! host that belongs to a cluster of seeds states its key under its certificate and believes stated keys only; which it is,
//! its own disk says. `up`, `controller`, `server` and `agent` begin with it, and `login` seals with it.

use std::path::Path;
use std::sync::Arc;

use agent::{Prove, Publish};
use controller::VaultOptions;
use membership::keep::Keep;
use schemas::names::NodeName;
use schemas::records::LinkProof;
use trust::identity::Role;
use trust::publish::{self, Believed};
use trust::seal::{SealingKey, SealingPublic, Statement};
use trust::trusted::Trust;

use crate::failure::{Exit, Failure};

const KEY_FILE: &str = "sealing.key";

/// A controller's key, from its directory.
fn key(dir: &Path) -> Result<SealingKey, Failure> {
    let cannot = |what: &str, error: &(dyn std::error::Error + 'static)| {
        Failure::new(
            Exit::Failed,
            format!("cannot {what} the sealing key in {}", dir.display()),
        )
        .because(error)
    };
    std::fs::create_dir_all(dir).map_err(|error| cannot("make the directory of", &error))?;
    let keep = Keep::beside(dir);
    if let Some(bytes) = keep.read(KEY_FILE).map_err(|error| cannot("read", &error))? {
        let text = String::from_utf8_lossy(&bytes);
        return text.parse().map_err(|error| cannot("read", &error));
    }
    let key = SealingKey::generate().map_err(|error| cannot("make", &error))?;
    keep.write(KEY_FILE, key.to_text().as_bytes())
        .map_err(|error| cannot("write", &error))?;
    Ok(key)
}

/// For a controller of a cluster without authorities: its key is in `dir`.
///
/// # Errors
/// When the key can be neither read nor made.
pub fn plain(dir: &Path) -> Result<VaultOptions, Failure> {
    let key = Arc::new(key(dir)?);
    let published = publish::plain(key.public());
    Ok(VaultOptions {
        key,
        published: Arc::new(move || published.clone()),
        believed: Arc::new(|cluster| Some(Believed::Store(cluster))),
    })
}

/// For the controller beside a seed.
///
/// # Errors
/// When the key can be neither read nor made.
pub fn seed(dir: &Path) -> Result<VaultOptions, Failure> {
    let key = Arc::new(key(dir)?);
    let (public, place) = (key.public(), dir.to_owned());
    let believed = dir.to_owned();
    Ok(VaultOptions {
        key,
        published: Arc::new(move || stated(&place, Role::Server, public).unwrap_or_default()),
        believed: Arc::new(move |_| authorities(&believed)),
    })
}

/// For an agent that has joined: its key is stated under the certificate in `dir`.
pub fn member(dir: &Path) -> Publish {
    let dir = dir.to_owned();
    Publish(Arc::new(move |public| stated(&dir, Role::Node, public)))
}

/// For an agent that has joined: its link is its own word, signed under the certificate in `dir`.
pub fn prove(dir: &Path, node: &NodeName) -> Prove {
    let (dir, node) = (dir.to_owned(), node.clone());
    Prove(Arc::new(move |document| {
        let held = Keep::beside(&dir).held(&Role::Node.to_string()).ok().flatten()?;
        let (certificate, signature) =
            publish::sign_link(document, node.as_str(), &held.certificate, &held.key).ok()?;
        Some(LinkProof { certificate, signature })
    }))
}

fn stated(dir: &Path, role: Role, public: SealingPublic) -> Option<String> {
    let held = Keep::beside(dir).held(&role.to_string()).ok().flatten()?;
    let statement = Statement::write(public, &held.certificate, &held.key).ok()?;
    Some(publish::stated(&statement))
}

/// Whom a host of a cluster of seeds believes; None where the directory is no such host's.
pub fn authorities(dir: &Path) -> Option<Believed> {
    let believed = membership::believed::Believed::on_disk(&Keep::beside(dir))
        .ok()
        .flatten()?;
    let trust: Trust = believed.trust();
    Some(Believed::Authorities(Box::new(trust)))
}
