//! What a seed does as long as it lives, beside answering: it renews its own certificates, hears of new authorities and of
//! the revoked, and shuts the revoked out of its store. etcd asks its list of the revoked at a handshake and never again, so
//! the member is started again to cut what is open: one wave of seeds after the other, so that the store keeps its quorum.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use runtime::reflector::Cache;
use runtime::{EtcdOptions, EtcdStore, Prefix, ReflectOptions, Shutdown, Store, chain, reflect};
use rustls::ClientConfig;
use schemas::keys::Key as StoreKey;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use trust::certificate::Serial;
use trust::tls::Door;

use crate::call::{CallError, call};
use crate::etcd::client_url;
use crate::issued::revoked_serials;
use crate::keep::{Keep, KeepError};
use crate::port::{Seat, SeedState};
use crate::seed::{SeedError, renew_own, tls_files};
use crate::seeds::{Host, Seeds};
use crate::{SEED_PORT, now};

/// The store's list of the revoked, which etcd reads at every handshake.
pub const REVOCATION_FILE: &str = "revoked.crl";
const CUT: &str = "cut.json";
/// How often certificates are looked at.
const LOOK: Duration = Duration::from_secs(20);
/// After something could not be done.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the seeds of earlier waves are waited for, all together: one that hangs must not keep the revoked in.
const TURN: Duration = Duration::from_secs(4);
/// How long a member may take to answer after it was started again; then the next wave begins all the same.
const BACK: Duration = Duration::from_secs(15);

/// What this seed's member was last started with: `cut.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cut {
    /// The list's number.
    number: u64,
    serials: BTreeSet<Serial>,
}

/// What the task works with.
pub struct Upkeep {
    pub keep: Arc<Keep>,
    pub seat: Arc<Seat>,
    pub door: Arc<Door>,
    pub store: EtcdStore,
    /// For calls to other seeds.
    pub calling: Arc<ClientConfig>,
    /// Has the member started again.
    pub again: watch::Sender<u64>,
}

/// Makes sure that the store's list of the revoked is there before the member starts: without the file it refuses everybody.
///
/// # Errors
/// When the disk does not take it.
pub fn prepare(keep: &Keep, seat: &Seat) -> Result<(), SeedError> {
    if keep.read(REVOCATION_FILE)?.is_none() {
        let none = seat.authority.revocation_file(&[], 0, now())?;
        keep.write(REVOCATION_FILE, none.as_bytes())?;
    }
    let cut: Cut = keep.read_json(CUT)?.unwrap_or_default();
    seat.cut.store(cut.number, Ordering::Release);
    Ok(())
}

/// Whom a seed lets go first before it starts its own member again: all of the waves before its own. A wave is so large that
/// the others are a majority.
fn earlier<'a>(seeds: &'a Seeds, me: &Host) -> Vec<&'a Host> {
    let all: Vec<&Host> = seeds.iter().collect();
    let wave = (all.len().saturating_sub(1) / 2).max(1);
    let mine = all.iter().position(|seed| *seed == me).unwrap_or(0);
    all.into_iter().take(mine / wave * wave).collect()
}

impl Upkeep {
    /// Works until the shutdown drains.
    pub async fn run(self, shutdown: Shutdown) {
        let prefix = Prefix::new(self.seat.root.prefix("trust")).expect("a root's prefix ends in a slash");
        let mut reader = reflect(self.store.clone(), prefix, ReflectOptions::default(), &shutdown);
        let mut soon = LOOK;
        loop {
            tokio::select! {
                changed = reader.changed() => if changed.is_err() { return },
                () = sleep(soon) => {}
            }
            soon = LOOK;
            if let Err(error) = renew_own(&self.keep, &self.seat, &self.door) {
                tracing::warn!(error = %chain(&error), "this seed's certificates cannot be renewed");
            }
            if let Err(error) = self.store.reread_tls().await {
                tracing::warn!(error = %chain(&error), "the store's clients cannot use the renewed certificates");
            }
            let done = async {
                if let Some(cache) = reader.snapshot() {
                    self.hear(&cache)?;
                }
                self.shut_out().await
            };
            let ended = tokio::select! {
                done = done => done,
                () = shutdown.draining() => return,
            };
            if let Err(why) = ended {
                tracing::warn!(why, "the revoked are not shut out of the store yet");
                soon = AGAIN;
            }
        }
    }

    fn hear(&self, cache: &Cache) -> Result<(), String> {
        let mut believed = self.seat.believed();
        let changed = believed.follow(&self.keep, &self.seat.root, cache);
        if changed.map_err(|error| chain(&error))? {
            self.door.set_trust(believed.trust());
            *self.seat.believed.write().unwrap_or_else(PoisonError::into_inner) = believed;
        }
        Ok(())
    }

    /// Brings the store's list up to the one in force, and cuts what is open.
    async fn shut_out(&self) -> Result<(), String> {
        let revoked = self.seat.believed().revoked().clone();
        let mut cut: Cut = self
            .keep
            .read_json(CUT)
            .map_err(|error| chain(&error))?
            .unwrap_or_default();
        if revoked.number() <= cut.number {
            return Ok(());
        }
        let notes = Prefix::new(self.seat.root.prefix("issued")).map_err(|error| chain(&error))?;
        let notes = self.store.list(&notes).await.map_err(|error| chain(&error))?;
        let notes = notes.kvs.iter().map(|kv| (kv.key.as_slice(), &*kv.value));
        let serials = revoked_serials(&self.seat.root, notes, &revoked);
        let new = serials.keys().filter(|serial| !cut.serials.contains(serial)).count();
        if new > 0 {
            let listed: Vec<_> = serials.iter().map(|(serial, at)| (*serial, *at)).collect();
            let file = self
                .seat
                .authority
                .revocation_file(&listed, revoked.number(), now())
                .map_err(|error| chain(&error))?;
            self.keep
                .write(REVOCATION_FILE, file.as_bytes())
                .map_err(|error| chain(&error))?;
            // Who missed a turn waits no longer: the revoked must not stay.
            let _ = timeout(TURN, self.turn(revoked.number())).await;
            tracing::info!(
                new,
                list = revoked.number(),
                "cutting the connections of the revoked: the store's member starts again"
            );
            self.again.send_modify(|times| *times += 1);
            if timeout(BACK, self.back()).await.is_err() {
                tracing::warn!("the store's member does not answer yet");
            }
        }
        cut.number = revoked.number();
        cut.serials = serials.into_keys().collect();
        self.keep
            .write_json(CUT, &cut)
            .map_err(|error: KeepError| chain(&error))?;
        self.seat.cut.store(cut.number, Ordering::Release);
        Ok(())
    }

    /// Waits until the earlier waves have done it. One that does not answer is none to wait for.
    async fn turn(&self, number: u64) {
        for host in earlier(&self.seat.seeds, &self.seat.host) {
            let mut silent = 0;
            while silent < 2 {
                match call::<(), SeedState>(host, SEED_PORT, &self.calling, "/v1/seed", None).await {
                    Ok((state, _)) if state.cut >= number => break,
                    Ok(_) => {}
                    Err(CallError::Silent { .. } | CallError::Slow { .. } | CallError::BrokenOff { .. }) => silent += 1,
                    Err(CallError::Stranger { .. } | CallError::Nonsense { .. } | CallError::Refused { .. }) => break,
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Waits until this seed's own member answers with the others.
    async fn back(&self) {
        let mut options = EtcdOptions::new(&client_url(&self.seat.host));
        options.tls = Some(tls_files(&self.keep));
        options.deadline = Duration::from_secs(2);
        let place = self.seat.root.key(&StoreKey::Cluster).into_bytes();
        let begun = Instant::now();
        while begun.elapsed() < BACK {
            // The old process may answer once more: it is asked after it was told to end, and it ends at once or not at all.
            sleep(Duration::from_millis(200)).await;
            if let Ok(own) = EtcdStore::prepare(options.clone()).await
                && own.get(&place).await.is_ok()
            {
                return;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_leaves_a_majority() {
        for (seeds, most) in [("a,b,c", 1), ("a,b,c,d,e", 2), ("a,b,c,d,e,f,g", 3)] {
            let seeds: Seeds = seeds.parse().unwrap();
            let waits: Vec<usize> = seeds.iter().map(|seed| earlier(&seeds, seed).len()).collect();
            assert_eq!(waits[0], 0);
            for wave in &waits {
                assert!(waits.iter().filter(|other| *other == wave).count() <= most, "{waits:?}");
            }
        }
        let one: Seeds = "a".parse().unwrap();
        assert!(earlier(&one, one.iter().next().unwrap()).is_empty());
    }
}
