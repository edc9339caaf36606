//! What a seed's controller signs with: its certificate and key on this host's disk, and whom it believes itself. Read again
//! while it runs, for certificates are renewed there and authorities change. `reeve server` hands it to its controller.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use trust::identity::Role;
use trust::sign::{Pen, Signing};

use crate::believed::Believed;
use crate::keep::{Keep, KeepError};

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Why this host cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error("{} is missing", .0.display())]
    Missing(PathBuf),
}

/// What is on disk now, and whatever comes. The looking ends when nobody listens any more.
///
/// # Errors
/// When it is not there, or damaged.
pub fn follow(dir: &Path) -> Result<watch::Receiver<Arc<Signing>>, SigningError> {
    let keep = Keep::beside(dir);
    let (sender, now) = watch::channel(Arc::new(read(&keep)?));
    tokio::spawn(async move {
        let mut told = None;
        loop {
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            match read(&keep) {
                Ok(found) => {
                    told = None;
                    if !same(&sender.borrow(), &found) {
                        sender.send_replace(Arc::new(found));
                    }
                }
                // Key and certificate are not written at one moment: what was read before counts until they fit.
                Err(error) => {
                    let why = runtime::chain(&error);
                    if told.as_ref() != Some(&why) {
                        tracing::warn!("{why}; what was read before counts, and it is tried again");
                        told = Some(why);
                    }
                }
            }
        }
    });
    Ok(now)
}

fn read(keep: &Keep) -> Result<Signing, SigningError> {
    let name = Role::Controller.to_string();
    let path = keep.path(&format!("{name}.crt"));
    let held = keep.held(&name)?;
    let Some(held) = held else {
        return Err(SigningError::Missing(path));
    };
    let believed = Believed::on_disk(keep)?;
    let believed = believed.ok_or_else(|| SigningError::Missing(keep.path("authorities.json")))?;
    let pen = Pen::new(held.certificate, held.key).map_err(|_| KeepError::Mismatch { path })?;
    Ok(Signing {
        pen,
        trust: believed.trust(),
    })
}

fn same(one: &Signing, other: &Signing) -> bool {
    one.trust == other.trust && one.pen.certificate().fingerprint() == other.pen.certificate().fingerprint()
}
