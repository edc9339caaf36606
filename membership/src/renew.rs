//! What a node does for its certificate as long as it lives: it asks a seed for the successor at a third of its life, hears of
//! new authorities and of the revoked, and lets whoever uses them know. With every seed gone it goes on asking. A node that was
//! shut out finds that out, and says it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runtime::backoff::{Backoff, jitter};
use runtime::{Cache, EtcdStore, Prefix, ReflectOptions, Shutdown, Store as _, chain, reflect};
use rustls::ClientConfig;
use schemas::keys::Root;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep_until};
use trust::authority::request;
use trust::certificate::Certificate;
use trust::identity::Role;
use trust::tls::Door;
use trust::trusted::Trust;
use trust::validity::Time;

use crate::believed::Believed;
use crate::call::{CallError, call, to_seeds};
use crate::join::JoinError;
use crate::keep::{Held, Keep, KeepError};
use crate::port::{JoinAnswer, RenewQuestion, SeedState};
use crate::rotate::{Renewed, has_left};
use crate::seeds::Seeds;
use crate::{SEED_PORT, now};

/// The longest that a clock is trusted to be right about the next renewal.
const LOOK: Duration = Duration::from_secs(3_600);
const SOONEST: Duration = Duration::from_secs(1);
/// How often it is asked why the store does not answer.
const WHY: Duration = Duration::from_secs(10);

/// Over how long the nodes of a cluster spread their renewals when the authority is replaced.
const APART: Duration = Duration::from_secs(15);

/// Why the seeds do not let a host in.
#[derive(Clone, Copy)]
enum ShutOut {
    Removed,
    /// Its certificate is of an authority that is forgotten.
    LeftBehind,
}

/// A member of the cluster that is no seed.
#[derive(Debug)]
pub struct Membership {
    pub keep: Arc<Keep>,
    /// `node`: the name of the certificate's files.
    pub role: Role,
    pub seeds: Seeds,
    pub root: Root,
    door: Arc<Door>,
    believed: Mutex<Believed>,
    trust: watch::Sender<Arc<Trust>>,
}

impl Membership {
    /// What this host's disk says.
    ///
    /// # Errors
    /// When it is damaged, or the host has not joined.
    pub fn on_disk(keep: Arc<Keep>, role: Role, seeds: Seeds, root: Root) -> Result<Self, JoinError> {
        let believed = Believed::on_disk(&keep)?.ok_or(JoinError::NotJoined)?;
        let held = keep.held(&role.to_string())?.ok_or(JoinError::NotJoined)?;
        let door = believed.door(&held).map_err(JoinError::Show)?;
        let trust = watch::channel(Arc::new(believed.trust())).0;
        Ok(Self {
            keep,
            role,
            seeds,
            root,
            door,
            believed: Mutex::new(believed),
            trust,
        })
    }

    /// Whom to believe, from now on.
    #[must_use]
    pub fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }

    /// What this host shows at its connections, and whom it trusts: always what is in force.
    #[must_use]
    pub fn door(&self) -> Arc<Door> {
        Arc::clone(&self.door)
    }

    fn believed(&self) -> Believed {
        self.believed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn held(&self) -> Result<Held, JoinError> {
        self.keep.held(&self.role.to_string())?.ok_or(JoinError::NotJoined)
    }

    fn show(&self) -> Result<(), JoinError> {
        let held = self.held()?;
        self.door
            .show(&held.certificate, &held.key, self.believed().bundle().present())
            .map_err(JoinError::Show)
    }

    /// Works until the shutdown drains.
    pub async fn run(self: Arc<Self>, store: EtcdStore, shutdown: Shutdown) {
        let prefix = Prefix::new(self.root.prefix("trust")).expect("a root's prefix ends in a slash");
        let mut reader = reflect(store.clone(), prefix, ReflectOptions::default(), &shutdown);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        let mut at = Instant::now() + self.due();
        let mut why = interval(WHY);
        let mut told = false;
        let mut confirmed = false;
        loop {
            tokio::select! {
                changed = reader.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let before = self.believed().bundle().number();
                    if let Some(cache) = reader.snapshot()
                        && let Err(error) = self.hear(&cache)
                    {
                        tracing::warn!(error = %chain(&error), "what the authority says cannot be kept");
                    }
                    if self.believed().bundle().number() != before {
                        confirmed = false;
                        at = Instant::now() + self.due();
                    }
                }
                () = sleep_until(at) => {
                    at = Instant::now() + match self.renew_if_due().await {
                        Ok(_) => {
                            backoff.reset();
                            self.due()
                        }
                        Err(why) => {
                            let pause = backoff.delay();
                            tracing::warn!(why, "this host's certificate is not renewed yet");
                            pause
                        }
                    };
                }
                _ = why.tick() => {
                    if store.health().healthy_for().is_some() {
                        told = false;
                        if !confirmed {
                            confirmed = self.confirm().await;
                        }
                    } else if !told && let Some(shut) = self.shut_out().await {
                        told = true;
                        let why = match shut {
                            ShutOut::Removed => "it was removed from the cluster, or another host took its name",
                            ShutOut::LeftBehind => "the cluster's authority was replaced while it was away",
                        };
                        tracing::error!(
                            "the seeds no longer let this host in: {why}; what runs here goes on. To take it back, start the agent \
                             with a new token: on a seed, `reeve token create` prints one. To end what runs here: `reeve \
                             uninstall --force`"
                        );
                    }
                    continue;
                }
                () = shutdown.draining() => return,
            }
            if let Err(error) = store.reread_tls().await {
                tracing::warn!(error = %chain(&error), "the store cannot be reached with the renewed certificate");
            }
        }
    }

    /// How long until the certificate is looked at again.
    fn due(&self) -> Duration {
        let Ok(held) = self.held() else { return LOOK };
        if self.is_of_former(&held.certificate) {
            return jitter(SOONEST, APART);
        }
        wait(held.certificate.validity().renewal(), now())
    }

    /// Whether a seed answers and does not let this host in.
    pub async fn is_shut_out(&self) -> bool {
        self.shut_out().await.is_some()
    }

    async fn shut_out(&self) -> Option<ShutOut> {
        let tls = to_seeds(&self.door).ok()?;
        for host in self.seeds.iter() {
            match call::<(), SeedState>(host, SEED_PORT, &tls, "/v1/seed", None).await {
                Ok(_) => return None,
                Err(CallError::Stranger { .. }) if has_left(host, self.believed().bundle()).await => {
                    return Some(ShutOut::LeftBehind);
                }
                // The refusal comes after our side of the handshake is done, as an alert.
                Err(error) if chain(&error).contains("fatal alert") => return Some(ShutOut::Removed),
                Err(_) => {}
            }
        }
        None
    }

    fn hear(&self, cache: &Cache) -> Result<(), KeepError> {
        let mut believed = self.believed();
        let changed = believed.follow(&self.keep, &self.root, cache)?;
        let trust = believed.trust();
        *self.believed.lock().unwrap_or_else(PoisonError::into_inner) = believed;
        if changed {
            self.door.set_trust(trust.clone());
            self.trust.send_replace(Arc::new(trust));
        }
        Ok(())
    }

    /// Whether this host's certificate is of an authority that issues no more.
    fn is_of_former(&self, certificate: &Certificate) -> bool {
        let believed = self.believed();
        let bundle = believed.bundle();
        let issuer = bundle.issuer(certificate);
        issuer.is_some_and(|issuer| bundle.former().contains(issuer))
    }

    /// While an authority is replaced: tells the seeds that this host uses a certificate of the present one. Whether there
    /// is nothing to tell any more.
    pub async fn confirm(&self) -> bool {
        let Ok(held) = self.held() else { return false };
        let believed = self.believed();
        if believed.bundle().former().is_empty() {
            return true;
        }
        if self.is_of_former(&held.certificate) {
            return false;
        }
        let Ok(tls) = to_seeds(&self.door) else { return false };
        for host in self.seeds.iter() {
            match call::<_, Renewed>(host, SEED_PORT, &tls, "/v1/renewed", Some(&Renewed {})).await {
                Ok(_) => return true,
                Err(error) => tracing::debug!(error = %chain(&error), "cannot tell of the renewed certificate"),
            }
        }
        false
    }

    /// Asks for the successor of the certificate when its time has come. Whether there is one now.
    ///
    /// # Errors
    /// With the reason, when no seed gives one.
    pub async fn renew_if_due(&self) -> Result<bool, String> {
        let held = self.held().map_err(|error| chain(&error))?;
        if !held.certificate.renewal_is_due(now()) && !self.is_of_former(&held.certificate) {
            return Ok(false);
        }
        let until = held.certificate.validity().until;
        if until < now() {
            return Err(format!(
                "it ended at {until}: on a seed, `reeve token create` prints a token; start the agent with it again"
            ));
        }
        let tls = to_seeds(&self.door).map_err(|error| chain(&error))?;
        let mut why = Vec::new();
        for host in self.seeds.iter() {
            match self.renew_at(host, &held, &tls).await {
                Ok(until) => {
                    tracing::info!(%until, at = %host, "this host's certificate is renewed");
                    return Ok(true);
                }
                Err(error) => why.push(error),
            }
        }
        Err(why.join("; "))
    }

    async fn renew_at(&self, host: &crate::seeds::Host, held: &Held, tls: &Arc<ClientConfig>) -> Result<Time, String> {
        let asked = request(&held.key, held.certificate.identity(), &[], &[]).map_err(|error| chain(&error))?;
        let question = RenewQuestion {
            request: STANDARD.encode(asked),
        };
        let answer = call::<_, JoinAnswer>(host, SEED_PORT, tls, "/v1/renew", Some(&question)).await;
        let (answer, _) = answer.map_err(|error: CallError| chain(&error))?;
        let certificate = Certificate::from_pem(&answer.certificate).map_err(|error| chain(&error))?;
        if *certificate.key() != held.key.public() || certificate.identity() != held.certificate.identity() {
            return Err(format!("{host} sent a certificate that is not what was asked for"));
        }
        if self.is_of_former(&certificate) {
            return Err(format!("{host} has not heard yet that the authority was replaced"));
        }
        if certificate.renewal_is_due(now()) {
            return Err(format!(
                "{host} sent a certificate that asks for its successor already: see both hosts' clocks"
            ));
        }
        self.keep
            .write_certificate(&self.role.to_string(), &certificate)
            .map_err(|error| chain(&error))?;
        self.show().map_err(|error| chain(&error))?;
        Ok(certificate.validity().until)
    }
}

/// Until then, a little later for some than for others; at most an hour, for a clock may be set right meanwhile.
fn wait(renewal: Time, now: Time) -> Duration {
    let left = Duration::from_secs(renewal.unix_seconds().saturating_sub(now.unix_seconds()));
    let left = left.clamp(SOONEST, LOOK);
    left + jitter(Duration::ZERO, left / 10)
}
