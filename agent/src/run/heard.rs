//! What comes in from the engine: events, lists, inspections, and the ends of steps and pulls.

use std::time::Duration;

use planner::node::{Image, Observed, Op, OpOutcome, Step, settle};
use runtime::backoff::jitter;
use schemas::records::FailingReason;

use super::Took;
use super::state::{Agent, End, Note};
use crate::engine::{Action, Event, Inspection, LocalImage, Result as EngineResult};
use crate::execute::{pull_failure, sentence};
use crate::logins;

/// The engine is told to be down after lists have failed for this long.
const ENGINE_PATIENCE_MS: u64 = 10_000;
/// Delays after failed pulls: 2 s doubling to 2 minutes.
const PULL_RETRY_MS: (u64, u64) = (2_000, 120_000);

impl Agent {
    pub(super) fn heard(&mut self, event: Event) {
        match event {
            Event::Connected => {
                if std::mem::take(&mut self.deaf) {
                    tracing::info!("the engine is heard again");
                }
                self.sight.forget_all();
                self.inspections.all_stale();
                self.inspections.forgive();
                self.look_ups.forgive();
                self.list_retry.reset();
                self.list_wanted = true;
                self.list_at_ms = 0;
                self.sweep_at_ms = self.input.now_ms;
            }
            Event::Disconnected(error) => {
                if !std::mem::replace(&mut self.deaf, true) {
                    tracing::warn!("{}; what runs is kept, and it is tried again", sentence(&error));
                }
                self.list_wanted = true;
            }
            Event::ImageGone => self.forget_images(),
            Event::Container { id, action } => {
                let ours = self
                    .input
                    .ledger
                    .entries
                    .values()
                    .any(|entry| entry.container_id() == Some(id.as_str()));
                if matches!(action, Action::Started | Action::Died { .. } | Action::Updated) {
                    self.inspections.stale(&id);
                }
                let inspect = self.sight.event(&id, action) && ours;
                self.list_wanted = true;
                self.echo = Some((self.input.now_ms, 0));
                if inspect {
                    self.inspect(&id);
                }
            }
        }
    }

    pub(super) fn noted(&mut self, note: Note) {
        match note {
            Note::Created { step, outcome } => {
                self.settle(&step, &outcome);
                self.save_soon();
            }
            Note::Unjudged(making) => self.unjudged(making),
            // The next pass asks them.
            Note::Walled => {}
            Note::Ground(told) => {
                self.input.mtu = told.mtu;
                let news = told.link != self.ground.link;
                self.ground = *told;
                if news {
                    self.learn_facts();
                }
            }
            Note::VirtualIps(told) => self.virtual_ips = Some(*told),
            Note::Handed => {
                logins::save(&self.dir, &self.logins);
                self.input.secrets = self.logins.secret_states(&self.secret_place);
                // Whom a registry refused before may be another now.
                for (name, image) in &mut self.input.images {
                    if image
                        .failed
                        .as_ref()
                        .is_some_and(|failed| failed.reason == FailingReason::ImageDenied)
                    {
                        image.failed = None;
                        self.pull_failures.remove(name);
                    }
                }
            }
            Note::PullProgress { image, percent } => {
                if let Some(image) = self.input.images.get_mut(&image)
                    && let Some(pulling) = &mut image.pulling
                {
                    *pulling = percent;
                }
            }
        }
    }

    pub(super) fn ended(&mut self, end: End) {
        match end {
            End::Listed { mark, took, result } => self.listed(mark, took, result),
            End::Step { step, ran, took } => {
                self.metrics.operated(step.op.verb(), took, ran.failed.as_ref());
                self.step_ended(&step, &ran.outcome, took);
            }
            End::Pulled {
                image,
                began_ms,
                took,
                others_asked,
                result,
            } => {
                let failed = result.as_ref().err().map(|error| &error.kind);
                self.metrics.operated("pull", took, failed);
                self.pulled(image, began_ms, took, others_asked, result);
            }
            End::LookedUp { image, result } => {
                let counts = self.look_ups.ended(&image, result.is_err(), self.input.now_ms);
                match result {
                    Ok(found) if counts => {
                        let known = self.input.images.entry(image).or_default();
                        known.present = found.is_some();
                        known.loaded = found.as_ref().is_some_and(|found| found.loaded);
                        known.pin = found.and_then(|found| found.pin);
                    }
                    Ok(_) => self.look_up(image),
                    Err(error) => {
                        self.metrics.engine_failed(&error.kind);
                        tracing::debug!("{}", sentence(&error));
                    }
                }
            }
            End::Inspected { id, result } => self.inspected(&id, result),
            End::Logs { instance, lines } => {
                self.input.logs.insert(instance, lines);
            }
            End::Facts(told) => self.learned(told),
            End::Judged { making, judgement } => self.judged(making, judgement),
            End::Tidied(result) => {
                self.tidying = false;
                if let Err(error) = result {
                    self.metrics.engine_failed(&error.kind);
                    tracing::debug!("{}", sentence(&error));
                    self.networks = None;
                }
            }
        }
    }

    fn inspected(&mut self, id: &str, result: EngineResult<Inspection>) {
        let counts = self.inspections.ended(id, result.is_err(), self.input.now_ms);
        match result {
            Ok(_) if !counts => self.inspect(id),
            Ok(inspection) => self.sight.inspected(inspection),
            Err(error) => {
                self.metrics.engine_failed(&error.kind);
                tracing::debug!("{}", sentence(&error));
            }
        }
    }

    fn listed(&mut self, mark: u64, took: Duration, result: EngineResult<Vec<Observed>>) {
        self.listing = false;
        self.list_took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok(containers) => {
                if self.engine_down.take().is_some() {
                    tracing::info!("the engine answers again");
                }
                self.list_failing_since = None;
                self.list_retry.reset();
                self.seen = true;
                self.list_wanted |= self.sight.listed(containers, mark);
            }
            Err(error) => {
                self.metrics.engine_failed(&error.kind);
                let now = self.input.now_ms;
                let since = *self.list_failing_since.get_or_insert(now);
                self.list_wanted = true;
                self.list_at_ms = now + u64::try_from(self.list_retry.delay().as_millis()).unwrap_or(5_000);
                if now.saturating_sub(since) >= ENGINE_PATIENCE_MS {
                    self.seen = true;
                    let why = sentence(&error);
                    if self.engine_down.as_ref() != Some(&why) {
                        tracing::error!("the engine does not answer: {why}");
                    }
                    self.engine_down = Some(why);
                }
            }
        }
    }

    fn settle(&mut self, step: &Step, outcome: &OpOutcome) {
        let entry = self.input.ledger.entries.entry(step.instance.clone()).or_default();
        settle(&step.instance, entry, &step.op, outcome, self.input.now_ms);
    }

    fn step_ended(&mut self, step: &Step, outcome: &OpOutcome, took: Duration) {
        let Step {
            instance,
            op,
            reason,
            until_ms: _,
        } = step;
        match outcome {
            OpOutcome::Failed(failure) => {
                let entry = self.input.ledger.entries.get(instance);
                let known = entry.and_then(|entry| entry.failing.as_ref());
                if known.is_some_and(|known| known.message == failure.message) {
                    tracing::debug!(%instance, "{}", failure.message);
                } else {
                    tracing::warn!(%instance, "{}", failure.message);
                }
            }
            OpOutcome::Done | OpOutcome::Created { .. } => {
                let done = match op {
                    Op::Create { .. } => "created",
                    Op::Start { .. } => "started",
                    Op::Stop { .. } => "stopped",
                    Op::Kill { .. } => "killed",
                    Op::Remove { .. } => "removed",
                    Op::Unpause { .. } => "unpaused",
                    Op::Rename { .. } => "renamed",
                    Op::UpdateLimits { .. } => "limits set",
                    Op::Connect { .. } => "connected",
                };
                tracing::info!(%instance, took = %Took(took), why = %reason, "{done}");
            }
        }
        if matches!((op, outcome), (Op::Remove { .. }, OpOutcome::Done)) {
            self.drop_copies_of(instance);
        }
        self.settle(step, outcome);
        self.busy.remove(instance);
        self.sight.step_ended(instance);
        self.list_wanted = true;
        self.save_soon();
        match op {
            Op::Start { id } => {
                self.inspections.stale(id);
                self.sight.started(id);
            }
            Op::UpdateLimits { id, spec: _ }
            | Op::Rename { id, to: _ }
            | Op::Connect { id, seat: _ }
            | Op::Unpause { id } => {
                self.inspections.stale(id);
                self.sight.forget(id);
            }
            Op::Create { image, .. } => {
                // It was started, too: what was read in between is of a container that never ran.
                let entry = self.input.ledger.entries.get(instance);
                if let Some(id) = entry.and_then(|entry| entry.container_id().map(str::to_owned)) {
                    self.inspections.stale(&id);
                    self.sight.started(&id);
                }
                self.creating = self.creating.saturating_sub(1);
                self.create_ms = self.input.now_ms;
                let lacks_image =
                    matches!(outcome, OpOutcome::Failed(failure) if failure.reason == FailingReason::ImageNotFound);
                if lacks_image {
                    self.input.images.remove(image.as_str());
                }
                if matches!(outcome, OpOutcome::Failed(failure) if failure.reason == FailingReason::PolicyDenied) {
                    // The last look saw something else than the first: a path leads elsewhere now.
                    self.ask_policy_again();
                }
            }
            Op::Stop { .. } | Op::Kill { .. } | Op::Remove { .. } => {}
        }
        let damaged = matches!(outcome, OpOutcome::Failed(failure) if failure.reason == FailingReason::FileUnavailable);
        if damaged {
            self.look_at_files();
        }
    }

    fn pulled(
        &mut self,
        image: String,
        began_ms: u64,
        took: Duration,
        others_asked: bool,
        result: EngineResult<LocalImage>,
    ) {
        let known = match result {
            Ok(found) => {
                tracing::info!(image, took = %Took(took), "pulled");
                self.pull_failures.remove(&image);
                Image {
                    present: true,
                    pin: found.pin,
                    loaded: found.loaded,
                    pulled_ms: Some(began_ms),
                    pulling: None,
                    failed: None,
                }
            }
            Err(error) => {
                let message = sentence(&error);
                let (count, last) = self.pull_failures.entry(image.clone()).or_default();
                if *last != message {
                    tracing::warn!("{message}");
                    *last = message;
                }
                *count = count.saturating_add(1);
                let bound = PULL_RETRY_MS
                    .0
                    .saturating_mul(1 << (*count - 1).min(20))
                    .min(PULL_RETRY_MS.1);
                let delay = jitter(Duration::from_millis(bound / 2), Duration::from_millis(bound));
                let delay = u64::try_from(delay.as_millis()).unwrap_or(bound);
                let known = self.input.images.get(&image);
                Image {
                    present: known.is_some_and(|image| image.present),
                    pin: known.and_then(|image| image.pin),
                    loaded: known.is_some_and(|image| image.loaded),
                    pulled_ms: None,
                    pulling: None,
                    failed: Some(pull_failure(&error, self.input.now_ms, delay, others_asked)),
                }
            }
        };
        self.input.images.insert(image, known);
    }
}
