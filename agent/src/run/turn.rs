//! The turns of the loop: what is due by the clock, what comes in, then one pass. Work under way ends with the loop.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use planner::node::SpecId;
use runtime::Shutdown;
use runtime::chain;
use schemas::names::Namespace;
use schemas::records::AssignedState;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinError;

use super::state::{Agent, End, Note};
use super::{AgentError, now_ms};
use crate::register::News;

/// Two lists begin at least this far apart, and eight times as far as one takes: at most a ninth of the engine's time.
const BETWEEN_LISTS_MS: (u64, u64) = (25, 1_000);
/// After the engine told something it is listed again after so long, for it tells before it files: a list at once may still
/// show what was.
const ECHOES_MS: [u64; 2] = [100, 1_000];
/// A turn comes at least this often: the clock of a suspended machine stands still.
const LONGEST_TURN_MS: u64 = 2_000;
/// How long a shutdown waits for steps under way.
const DRAIN: Duration = Duration::from_secs(10);
/// A call that takes longer gives its permit back: what hangs delays its own instance only.
const HANGS: Duration = Duration::from_secs(5);

impl Agent {
    pub(super) async fn serve(
        &mut self,
        mut notes: mpsc::UnboundedReceiver<Note>,
        mut news: mpsc::Receiver<News>,
        probed: &Notify,
        shutdown: &Shutdown,
    ) -> Result<(), AgentError> {
        let mut events = self.engine.events(self.input.cluster.as_str());
        loop {
            self.input.now_ms = now_ms();
            self.hear_contact();
            self.tick();
            let wake = self.next_wake();
            tokio::select! {
                () = shutdown.draining() => break,
                Some(event) = events.next() => self.heard(event),
                Some(end) = self.work.join_next() => self.joined(end)?,
                Some(note) = notes.recv() => self.noted(note),
                Some(told) = news.recv() => self.told(told),
                () = probed.notified() => self.input.probes = self.prober.results(),
                () = tokio::time::sleep(wake) => {}
            }
            self.input.now_ms = now_ms();
            self.hear_contact();
            while let Ok(note) = notes.try_recv() {
                self.noted(note);
            }
            while let Some(end) = self.work.try_join_next() {
                self.joined(end)?;
            }
            while let Ok(told) = news.try_recv() {
                self.told(told);
            }
            self.pass();
        }
        self.drain(notes).await
    }

    /// A task that panicked has lost its end: the loop no longer knows what is under way, and is to be started again.
    fn joined(&mut self, end: Result<End, JoinError>) -> Result<(), AgentError> {
        let end = end.map_err(|_| AgentError::Broken {
            task: "a call to the engine",
        })?;
        self.ended(end);
        Ok(())
    }

    /// Lets steps under way end; begins nothing.
    async fn drain(&mut self, mut notes: mpsc::UnboundedReceiver<Note>) -> Result<(), AgentError> {
        tracing::info!(
            node = %self.input.node,
            "shutting down: steps under way end first; containers keep running, and the session is left for the next start"
        );
        let waited = tokio::time::timeout(DRAIN, async {
            while !self.busy.is_empty() {
                let Some(end) = self.work.join_next().await else { break };
                while let Ok(note) = notes.try_recv() {
                    self.noted(note);
                }
                self.joined(end)?;
            }
            Ok::<(), AgentError>(())
        });
        match waited.await {
            Ok(drained) => drained?,
            Err(_) => tracing::warn!(
                under_way = self.busy.len(),
                "not all steps ended in time; the next start reads back what became of them"
            ),
        }
        while let Ok(note) = notes.try_recv() {
            self.noted(note);
        }
        self.save();
        Ok(())
    }

    /// What is due by the clock: a sweep, a lazy write, a list.
    fn tick(&mut self) {
        let now = self.input.now_ms;
        self.heed_policy();
        if now >= self.sweep_at_ms {
            self.sweep();
        }
        if self.save_at_ms.is_some_and(|at| now >= at) {
            self.save();
        }
        if let Some((told_ms, done)) = self.echo
            && now >= told_ms + ECHOES_MS[done]
        {
            self.list_wanted = true;
            self.echo = (done + 1 < ECHOES_MS.len()).then_some((told_ms, done + 1));
        }
        if self.list_wanted && !self.listing && now >= self.list_at_ms {
            self.list();
        }
    }

    fn list(&mut self) {
        self.list_wanted = false;
        self.listing = true;
        let gap = self
            .list_took_ms
            .saturating_mul(8)
            .clamp(BETWEEN_LISTS_MS.0, BETWEEN_LISTS_MS.1);
        self.list_at_ms = self.input.now_ms + gap;
        let (engine, cluster, mark) = (self.engine.clone(), self.input.cluster.clone(), self.sight.mark());
        self.begin(async move {
            let began = Instant::now();
            let result = engine.list(cluster.as_str()).await;
            End::Listed {
                mark,
                took: began.elapsed(),
                result,
            }
        });
    }

    fn next_wake(&self) -> Duration {
        let list = (self.list_wanted && !self.listing).then_some(self.list_at_ms);
        let echo = self.echo.map(|(told_ms, done)| told_ms + ECHOES_MS[done]);
        let due = [Some(self.sweep_at_ms), self.look_again_ms, self.save_at_ms, list, echo];
        let next = due.into_iter().flatten().min().unwrap_or(u64::MAX);
        Duration::from_millis(next.saturating_sub(now_ms()).min(LONGEST_TURN_MS))
    }

    pub(super) fn begin(&mut self, work: impl Future<Output = End> + Send + 'static) {
        self.work.spawn(work);
    }

    /// The slow look at everything: a list, an inspection of each container, what is free on disk, what nobody needs.
    fn sweep(&mut self) {
        let now = self.input.now_ms;
        self.sweep_at_ms = now + u64::try_from(self.options.sweep.as_millis()).unwrap_or(30_000);
        self.list_wanted = true;
        self.inspections.sweep(now);
        self.look_ups.sweep(now);
        let mine: Vec<String> = self
            .input
            .ledger
            .entries
            .values()
            .filter_map(|entry| entry.container_id().map(str::to_owned))
            .collect();
        for id in mine {
            self.inspect(&id);
        }
        self.forget_images();
        self.check_disk();
        if let Some(offered) = self
            .offered
            .clone()
            .filter(|offered| self.input.assignment.as_ref() != Some(offered))
        {
            self.judge(offered);
        }
        if self.input.assignment.is_some() && self.seen {
            let idle: Vec<SpecId> = self
                .input
                .specs
                .keys()
                .filter(|id| !self.used_specs.contains(id))
                .cloned()
                .collect();
            for id in idle {
                self.input.specs.remove(&id);
                if let Err(error) = self.dir.remove_spec(&id) {
                    tracing::warn!("an unused spec stays on disk: {}", chain(&error));
                }
            }
        }
        self.ask_for_missed_specs();
        self.sweep_files();
        self.ask_policy_again();
        self.learn_facts();
        self.tidy();
    }

    /// Removes the networks of namespaces that have no instance here any more.
    fn tidy(&mut self) {
        let (Some(assignment), true) = (&self.input.assignment, self.seen && self.engine_down.is_none()) else {
            return;
        };
        if self.tidying {
            return;
        }
        let known = self.input.ledger.entries.keys().chain(&self.busy);
        let listed = self.sight.containers.iter().filter_map(|one| one.own());
        let assigned = assignment.instances.iter();
        let wanted = assigned.filter(|one| one.state != AssignedState::Absent);
        let keep: BTreeSet<Namespace> = known
            .map(|key| key.namespace.clone())
            .chain(wanted.map(|one| one.namespace.clone()))
            .chain(listed.map(|labels| labels.instance.namespace))
            .collect();
        let left = self.networks.as_ref().is_none_or(|known| !known.is_subset(&keep));
        self.networks = Some(keep.clone());
        if !left {
            return;
        }
        self.tidying = true;
        let (engine, cluster) = (self.engine.clone(), self.input.cluster.clone());
        self.begin(async move { End::Tidied(engine.drop_networks(cluster.as_str(), &keep).await) });
    }

    /// What is known of images may be wrong by now: it is looked up when it is needed.
    pub(super) fn forget_images(&mut self) {
        self.look_ups.all_stale();
        let ledger = &self.input.ledger;
        let awaited = ledger.entries.values().any(|entry| entry.pull_after_ms.is_some());
        let images = &mut self.input.images;
        images.retain(|_, image| image.pulling.is_some() || image.failed.is_some() || awaited);
        self.pull_failures.retain(|image, _| images.contains_key(image));
        let here: Vec<String> = images
            .iter()
            .filter(|(_, image)| image.present)
            .map(|(name, _)| name.clone())
            .collect();
        for image in here {
            self.look_up(image);
        }
    }
}

/// Does work under a permit, which it gives back early when it hangs.
pub(super) async fn under<T>(permits: Arc<Semaphore>, work: impl Future<Output = T>) -> (T, Duration) {
    let permit = permits.acquire_owned().await;
    let began = Instant::now();
    let mut work = std::pin::pin!(work);
    let done = tokio::select! {
        done = &mut work => done,
        () = tokio::time::sleep(HANGS) => {
            drop(permit);
            work.await
        }
    };
    (done, began.elapsed())
}
