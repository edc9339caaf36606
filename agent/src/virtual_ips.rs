//! The virtual addresses that this node holds. `run.rs` starts [`keep`] beside the agent's loop, which says what it was granted
//! and hears what is held. An address is held for the session that it was granted for, and for no longer than that session is
//! certain to live: the kernel is given each address until a little before then, and drops it when this agent is stopped,
//! killed or cut off. A restarted agent that resumes its session goes on. Needs no network of the cluster's own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use network::floating::{Addresses, Changes, Outcome, Place, Wanted, announce};
use runtime::boottime::{self, Instant};
use runtime::{Shutdown, chain};
use schemas::records::{
    AssignedVirtualIp, AssignedVirtualIpState, HeldVirtualIp, Order, RefusedVirtualIp, ReportedVirtualIps,
};
use tokio::sync::{mpsc, watch};

use crate::metrics::Metrics;
use crate::run::Note;

/// So much before the session's end an address is gone: the kernel drops it up to a second late.
const MARGIN: Duration = Duration::from_secs(2);
/// How often everything is looked at though nothing was heard.
const LOOK: Duration = Duration::from_secs(1);
/// What comes at once is answered at once.
const GATHER: Duration = Duration::from_millis(10);
/// How often a new place is announced, and the time between.
const ANNOUNCED: u32 = 3;
const BETWEEN: Duration = Duration::from_secs(1);
/// Where the addresses that are ours are written down, under the data directory.
const LEDGER: &str = "virtual-ips.json";
const MESSAGE: usize = 300;

/// The node's session, as far as addresses go by it.
#[derive(Clone, Debug)]
pub struct Life {
    /// The create revision of its key.
    pub session: i64,
    /// Until when it lives at least.
    pub good_until: watch::Receiver<Instant>,
    /// For how long it lives after a renewal.
    pub lives: Duration,
}

impl Life {
    /// How long ago the last renewal that succeeded was asked for, and the moment by which to tell it from the one before.
    #[must_use]
    pub fn renewed(&self) -> (Duration, Instant) {
        let good = *self.good_until.borrow();
        let now = Instant::now();
        let ago = self.lives.saturating_sub(good.since(now)) + now.since(good);
        (ago, good)
    }
}

/// What this node was granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    pub order: Order,
    pub list: Vec<AssignedVirtualIp>,
}

/// What keeping addresses needs.
pub struct Keeping {
    pub dir: PathBuf,
    pub granted: watch::Receiver<Granted>,
    pub life: watch::Receiver<Option<Life>>,
    pub notes: mpsc::UnboundedSender<Note>,
    pub metrics: Arc<Metrics>,
}

/// For how many whole seconds from now an address may be held; None: not at all.
fn left(life: Option<&Life>) -> Option<u32> {
    let until = *life?.good_until.borrow();
    let left = until.since(Instant::now()).checked_sub(MARGIN)?.as_secs();
    u32::try_from(left).ok().filter(|left| *left > 0)
}

/// Keeps them until the shutdown drains. What is held then stays until its time has run out, for the next start.
pub async fn keep(keeping: Keeping, shutdown: Shutdown) {
    let Keeping {
        dir,
        mut granted,
        mut life,
        notes,
        metrics,
    } = keeping;
    let mut keeper = Keeper {
        ledger: dir.join(LEDGER),
        addresses: None,
        any: false,
        told: None,
        due: BTreeMap::new(),
        said: BTreeSet::new(),
        metrics,
    };
    let mut changes: Option<Changes> = None;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let now = granted.borrow_and_update().clone();
        let session = life.borrow_and_update().clone();
        let idle = keeper.converge(&now, session.as_ref()).await;
        if let Some(told) = keeper.news(&now) {
            let _ = notes.send(Note::VirtualIps(Box::new(told)));
        }
        if !idle && changes.as_ref().is_none_or(Changes::is_over) {
            changes = Changes::new().ok();
        }
        let mut renewed = session.map(|life| life.good_until);
        let renewed = async {
            let ended = match &mut renewed {
                Some(good) => good.changed().await.is_err(),
                None => true,
            };
            if ended {
                std::future::pending::<()>().await;
            }
        };
        let heard = async {
            match &changes {
                Some(changes) => changes.wait().await,
                None => std::future::pending().await,
            }
        };
        let next = keeper.due.values().map(|(_, at, _)| *at).min();
        let announced = async {
            match next {
                Some(at) => boottime::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.draining() => return,
            changed = granted.changed() => if changed.is_err() { return },
            changed = life.changed() => if changed.is_err() { return },
            () = renewed, if !idle => {}
            () = heard, if !idle => tokio::time::sleep(GATHER).await,
            () = announced => {}
            _ = look.tick(), if !idle => {}
        }
    }
}

struct Keeper {
    ledger: PathBuf,
    addresses: Option<Addresses>,
    /// Something was granted since the start, or held before.
    any: bool,
    told: Option<ReportedVirtualIps>,
    /// Announcements that are still to be made: how many, when the next, where.
    due: BTreeMap<IpAddr, (u32, Instant, Place)>,
    said: BTreeSet<String>,
    metrics: Arc<Metrics>,
}

impl Keeper {
    /// Makes the host hold what it is to. True: there is nothing to keep.
    async fn converge(&mut self, granted: &Granted, life: Option<&Life>) -> bool {
        let addresses = match self.addresses.take() {
            Some(addresses) => Ok(addresses),
            None if granted.list.is_empty() && !self.any && !self.ledger.exists() => return true,
            None => Addresses::new(self.ledger.clone()),
        };
        self.any = true;
        let session = life.map(|life| life.session);
        let mine: Vec<&AssignedVirtualIp> = granted
            .list
            .iter()
            .filter(|one| one.state == AssignedVirtualIpState::Held && session == Some(one.session))
            .collect();
        let wanted: Vec<Wanted> = mine
            .iter()
            .map(|one| Wanted {
                address: one.address,
                interface: one.interface.clone(),
            })
            .collect();
        let outcome = match addresses {
            Ok(mut addresses) => {
                let outcome = addresses.converge(&wanted, || left(life)).await;
                if outcome.is_ok() {
                    self.addresses = Some(addresses);
                }
                outcome
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(outcome) => {
                self.settled(granted, &mine, outcome);
                granted.list.is_empty()
                    && self.due.is_empty()
                    && self.told.as_ref().is_some_and(|told| told.held.is_empty())
            }
            Err(error) => {
                // Who cannot look says nothing new: what was told may be held still.
                self.say(format!("{}; virtual addresses are looked at again", chain(&error)));
                false
            }
        }
    }

    fn settled(&mut self, granted: &Granted, mine: &[&AssignedVirtualIp], outcome: Outcome) {
        let Outcome {
            held,
            taken,
            refused,
            notes,
        } = outcome;
        for note in notes {
            tracing::info!("{note}");
        }
        let now = Instant::now();
        self.due.retain(|ip, _| held.contains_key(ip));
        for ip in &taken {
            if let Some(place) = held.get(ip) {
                tracing::info!(address = %ip, device = place.name, "a virtual address is held here now");
                self.due.insert(*ip, (ANNOUNCED, now, place.clone()));
            }
        }
        for (ip, (count, at, place)) in &mut self.due {
            if *at > now {
                continue;
            }
            if let Err(error) = announce(*ip, place) {
                tracing::warn!("{}; others find it when what they know of it is old", chain(&error));
            }
            (*count, *at) = (count.saturating_sub(1), now + BETWEEN);
        }
        self.due.retain(|_, (count, ..)| *count > 0);
        let of = |ip: &IpAddr| mine.iter().find(|one| one.ip() == *ip);
        // What is held without being wanted any more could not be let go: its last grant is told.
        let last = self.told.take().map(|told| told.held).unwrap_or_default();
        let listed = |ip: &IpAddr| granted.list.iter().find(|one| one.ip() == *ip);
        let mut lines: Vec<HeldVirtualIp> = held
            .keys()
            .filter_map(|ip| {
                let grant = of(ip).copied().or_else(|| listed(ip));
                let line = grant.map(|one| HeldVirtualIp {
                    namespace: one.namespace.clone(),
                    name: one.name.clone(),
                    address: one.address,
                    session: one.session,
                });
                line.or_else(|| last.iter().find(|one| one.address.addr() == *ip).cloned())
            })
            .collect();
        lines.sort();
        for line in lines.iter().filter(|line| taken.contains(&line.address.addr())) {
            self.metrics
                .virtual_ip_taken(line.namespace.as_str(), line.name.as_str());
        }
        let names = lines
            .iter()
            .map(|line| (line.namespace.to_string(), line.name.to_string()));
        self.metrics.virtual_ips_held(names.collect());
        let mut refusals: Vec<RefusedVirtualIp> = refused
            .iter()
            .filter_map(|(ip, why)| {
                let one = of(ip)?;
                Some(RefusedVirtualIp {
                    namespace: one.namespace.clone(),
                    name: one.name.clone(),
                    message: why.chars().take(MESSAGE).collect(),
                })
            })
            .collect();
        refusals.sort();
        self.said.retain(|said| refused.values().any(|why| said == why));
        for why in refused.into_values() {
            self.say(why);
        }
        self.told = Some(ReportedVirtualIps {
            applied: granted.order,
            held: lines,
            refused: refusals,
        });
    }

    fn say(&mut self, why: String) {
        if self.said.insert(why.clone()) {
            tracing::warn!("{why}");
        }
    }

    /// What the agent is to say of them: nothing where there never were any.
    fn news(&self, granted: &Granted) -> Option<ReportedVirtualIps> {
        self.told.clone().filter(|told| told.applied == granted.order)
    }
}
