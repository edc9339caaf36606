//! What a seed does as long as it lives, beside answering: it renews its own certificates, hears of new authorities and of
//! the revoked, says when its front has shut them out, and takes its part when the authority is replaced. etcd reads whom its
//! peers are to be believed by when it starts: so the member is started again then, one wave of seeds after the other, so that
//! the store keeps its quorum.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use runtime::reflector::Cache;
use runtime::{EtcdOptions, EtcdStore, Prefix, ReflectOptions, Shutdown, Store, chain, reflect};
use rustls::ClientConfig;
use schemas::keys::Key as StoreKey;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use trust::key::Fingerprint;
use trust::tls::Door;

use crate::SEED_PORT;
use crate::call::call;
use crate::etcd::client_url;
use crate::front::RECHECK;
use crate::join::lines;
use crate::keep::{Keep, KeepError};
use crate::port::{Seat, SeedState};
use crate::rotate;
use crate::rotation::{Authorities, Facts, Next, Standing, next};
use crate::seed::{SeedError, member_client, renew_own, serve_anew, tls_files};
use crate::seeds::{Host, Seeds};

/// How often certificates are looked at.
const LOOK: Duration = Duration::from_secs(20);
/// After something could not be done.
const AGAIN: Duration = Duration::from_secs(1);
/// How long others are waited for before a member is started again without an authority that was forgotten.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a member may take to answer after it was started again; then the next wave begins all the same.
const BACK: Duration = Duration::from_secs(15);

/// How a look at the rotation ended.
enum Turned {
    /// There is none.
    Rests,
    Goes,
    Waits(String),
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

/// Whom a seed lets go first before it starts its own member again: all of the waves before its own. A wave is so large that
/// the others are a majority.
fn earlier<'a>(seeds: &'a Seeds, me: &Host) -> Vec<&'a Host> {
    let all: Vec<&Host> = seeds.iter().collect();
    let wave = (all.len().saturating_sub(1) / 2).max(1);
    let mine = all.iter().position(|seed| *seed == me).unwrap_or(0);
    all.into_iter().take(mine / wave * wave).collect()
}

/// What the member was last started with, and since when a turn is waited for.
struct Anchor {
    authorities: BTreeSet<Fingerprint>,
    /// It was started again for this set, and has not answered since.
    started_for: u64,
    waiting_since: Option<Instant>,
}

impl Upkeep {
    /// Works until the shutdown drains.
    pub async fn run(self, shutdown: Shutdown) {
        let prefix = Prefix::new(self.seat.root.prefix("trust")).expect("a root's prefix ends in a slash");
        let mut reader = reflect(self.store.clone(), prefix, ReflectOptions::default(), &shutdown);
        // The member was started by this process, with what was on disk then; nothing has been heard since.
        let believed = self.seat.believed();
        let mut anchor = Anchor {
            authorities: Authorities::from(believed.bundle()).all(),
            started_for: 0,
            waiting_since: None,
        };
        self.seat.anchored.store(believed.bundle().number(), Ordering::Release);
        let mut told = None;
        let mut stale = false;
        let mut soon = LOOK;
        loop {
            tokio::select! {
                changed = reader.changed() => if changed.is_err() { return },
                () = sleep(soon) => {}
            }
            soon = LOOK;
            if let Some(cache) = reader.snapshot()
                && let Err(error) = self.hear(&cache)
            {
                tracing::warn!(error = %chain(&error), "what the authority says cannot be kept");
                soon = AGAIN;
            }
            if let Err(error) = renew_own(&self.keep, &self.seat, &self.door) {
                tracing::warn!(error = %chain(&error), "this seed's certificates cannot be renewed");
            }
            match self.store.reread_tls().await {
                Ok(renewed) => stale |= renewed,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the store's clients cannot use the renewed certificates");
                }
            }
            if stale {
                match self.ask_anew().await {
                    Ok(()) => stale = false,
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "the store's members cannot be asked with the renewed certificates");
                    }
                }
            }
            tokio::select! {
                () = self.shut_out() => {}
                () = shutdown.draining() => return,
            }
            let turned = tokio::select! {
                turned = self.rotate(&mut anchor) => turned,
                () = shutdown.draining() => return,
            };
            match turned {
                Ok(Turned::Rests) => told = None,
                Ok(Turned::Goes) => {
                    told = None;
                    soon = AGAIN;
                }
                // Said once for each reason: one may wait for days.
                Ok(Turned::Waits(why)) | Err(why) => {
                    if told.as_ref() != Some(&why) {
                        tracing::info!(why, "the replacement of the authority waits");
                        told = Some(why);
                    }
                    soon = AGAIN;
                }
            }
        }
    }

    fn hear(&self, cache: &Cache) -> Result<(), KeepError> {
        let mut believed = self.seat.believed();
        if believed.follow(&self.keep, &self.seat.root, cache)? {
            self.door.set_trust(believed.trust());
        }
        *self.seat.believed.write().unwrap_or_else(PoisonError::into_inner) = believed;
        Ok(())
    }

    /// Takes the renewed certificates for what is asked of the store's members.
    async fn ask_anew(&self) -> Result<(), SeedError> {
        let client = member_client(&self.seat.seeds, &self.keep).await?;
        let mut asks = self.seat.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, before)) = asks.as_mut() {
            *before = client;
        }
        Ok(())
    }

    /// Takes this seed's next step in a rotation of the authority.
    async fn rotate(&self, anchor: &mut Anchor) -> Result<Turned, String> {
        let believed = self.seat.believed();
        let authorities = Authorities::from(believed.bundle());
        let own = self.seat.standing();
        let settled = own.anchored >= authorities.number && own.holds == BTreeSet::from([authorities.present]);
        if !believed.bundle().is_rotating() && settled {
            return Ok(Turned::Rests);
        }
        let others = self.others().await;
        let awaited = if authorities.next.is_none() && !authorities.former.is_empty() {
            let awaited = rotate::awaited(&self.store, &self.seat.root, &believed).await;
            awaited.map_err(|error| chain(&error))?.needed
        } else {
            BTreeSet::new()
        };
        let facts = Facts {
            authorities: &authorities,
            own: &own,
            others: &others,
            awaited: &awaited,
        };
        let step = |done: Result<(), rotate::StepError>| done.map_err(|error| chain(&error));
        match next(&facts) {
            Next::Rest => return Ok(Turned::Rests),
            Next::AwaitSeeds(hosts) => return Ok(Turned::Waits(lines(&hosts).join("; "))),
            Next::AwaitOthers(who) => {
                let who: Vec<String> = who.into_iter().take(8).collect();
                return Ok(Turned::Waits(who.join(", ")));
            }
            Next::FetchKey(pin) => rotate::fetch(&self.keep, &self.seat, &self.calling, &pin).await?,
            Next::Anchor => return self.anchor(&authorities, anchor, &others).await,
            Next::Promote => step(rotate::promote(&self.seat, &self.store).await)?,
            Next::Serve => {
                serve_anew(&self.keep, &self.seat, &self.door).map_err(|error| chain(&error))?;
                tracing::info!("shows a certificate of the new authority");
            }
            Next::Forget(pin) => step(rotate::forget(&self.seat, &self.store, &pin).await)?,
            Next::Destroy(pins) => {
                for pin in pins {
                    self.keep.forget_authority(&pin).map_err(|error| chain(&error))?;
                    self.seat.keys.remove(&pin);
                    tracing::info!(authority = %rotate::short(&pin), "the former authority's key is destroyed here");
                }
            }
        }
        Ok(Turned::Goes)
    }

    /// How far every other seed is.
    async fn others(&self) -> BTreeMap<Host, Result<Standing, String>> {
        let others = self.seat.seeds.iter().filter(|host| **host != self.seat.host);
        let asked = others.map(async |host| {
            let said = call::<(), SeedState>(host, SEED_PORT, &self.calling, "/v1/seed", None).await;
            let said = said.map(|(state, _)| state.authorities).map_err(|error| chain(&error));
            (host.clone(), said)
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Has the store's member work with these authorities: started again, when this seed's turn has come, unless they are the
    /// ones that it works with.
    async fn anchor(
        &self,
        authorities: &Authorities,
        anchor: &mut Anchor,
        others: &BTreeMap<Host, Result<Standing, String>>,
    ) -> Result<Turned, String> {
        let number = authorities.number;
        let all = authorities.all();
        if anchor.authorities != all {
            let since = *anchor.waiting_since.get_or_insert_with(Instant::now);
            let first = earlier(&self.seat.seeds, &self.seat.host);
            let later = |host: &Host, said: &Result<Standing, String>| match said {
                Err(why) => Some(why.clone()),
                // While its member does not run, ours is needed.
                Ok(said) if said.anchored == 0 => Some("its store does not run".to_owned()),
                Ok(said) if first.contains(&host) && said.anchored < number => {
                    Some("its store comes before this one's".to_owned())
                }
                Ok(_) => None,
            };
            let waiting: BTreeMap<Host, String> = others
                .iter()
                .filter_map(|(host, said)| Some((host.clone(), later(host, said)?)))
                .collect();
            // The former authority must go, whoever is away; the new one has time.
            let patient = authorities.next.is_some() || since.elapsed() < PATIENCE;
            if !waiting.is_empty() && patient && anchor.started_for != number {
                return Ok(Turned::Waits(lines(&waiting).join("; ")));
            }
            if anchor.started_for != number {
                tracing::info!(number, "the store's member starts again, with the authorities in force");
                self.again.send_modify(|times| *times += 1);
                anchor.started_for = number;
            }
            if timeout(BACK, self.back()).await.is_err() {
                return Err("the store's member does not answer yet".to_owned());
            }
            anchor.authorities = all;
        }
        anchor.waiting_since = None;
        self.seat.anchored.store(number, Ordering::Release);
        Ok(Turned::Goes)
    }

    /// Says that the revoked are cut off, once the front has looked at every connection again.
    async fn shut_out(&self) {
        let number = self.seat.believed().revoked().number();
        if number > self.seat.cut.load(Ordering::Acquire) {
            sleep(RECHECK * 2).await;
            self.seat.cut.store(number, Ordering::Release);
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
