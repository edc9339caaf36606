//! What the planner wants to know of the node's policy: asked at once where no host path has to be looked up, else beside the
//! loop. What was said counts until something else is said: of the same spec it is asked again at each sweep, and whenever
//! the policy has changed, so that nothing needs a retry.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use planner::node::{Making, Permit, SpecState};
use schemas::names::InstanceName;
use schemas::service::ServiceSpec;

use super::state::{Agent, End, Note};
use crate::engine::{CLUSTER_LABEL, CreateRequest, OLDEST_API, translate};
use crate::execute::of_image;
use crate::policy::{Asked, Gate, Judgement};

/// The policy's file is looked at this often.
const LOOK_MS: u64 = 1_000;
/// A question whose paths are not looked up by then is answered with a denial, and the true answer follows.
const LOOK_UP: Duration = Duration::from_secs(5);

impl Agent {
    /// Takes up a policy that has changed.
    pub(super) fn heed_policy(&mut self) {
        let now = self.input.now_ms;
        if now < self.gate_at_ms {
            return;
        }
        self.gate_at_ms = now + LOOK_MS;
        if !self.gate.refresh() {
            return;
        }
        match self.gate.unreadable() {
            None => tracing::info!("in force from now on: {}", self.gate.name()),
            Some(why) => tracing::error!("{why}; what runs is kept, no new container is made until it is right"),
        }
        self.ask_policy_again();
    }

    /// Asks anew whatever was asked before and is still of use. What was said counts until then.
    pub(super) fn ask_policy_again(&mut self) {
        let specs = &self.input.specs;
        let Some(permits) = &mut self.input.permits else { return };
        permits.retain(|making, _| specs.contains_key(&making.spec));
        let known: Vec<Making> = permits.keys().cloned().collect();
        self.judging.values_mut().for_each(|stale| *stale = true);
        for making in known {
            self.ask(making);
        }
    }

    /// Asks what the planner wants to know. True: there are answers already.
    pub(super) fn ask_policy(&mut self, wanted: BTreeSet<Making>) -> bool {
        if !wanted.is_empty() {
            // A person who has just changed the policy is asked of no older one.
            self.gate_at_ms = 0;
            self.heed_policy();
        }
        let mut answered = false;
        for making in wanted {
            answered |= self.ask(making);
        }
        answered
    }

    /// True: it is answered already.
    fn ask(&mut self, making: Making) -> bool {
        let Some(SpecState::Here(spec)) = self.input.specs.get(&making.spec) else {
            return false;
        };
        if self.judging.contains_key(&making) {
            return false;
        }
        let Some(question) = Question::new(&self.gate, &making, spec, self.input.cluster.as_str()) else {
            // What cannot be said to an engine is refused by the create itself, with the reason.
            self.answer(making, Judgement::Granted);
            return true;
        };
        if let Some(judgement) = self.gate.judge_at_once(&question.asked()) {
            self.answer(making, judgement);
            return true;
        }
        self.judging.insert(making.clone(), false);
        let (gate, notes): (Arc<Gate>, _) = (self.gate.clone(), self.notes.clone());
        self.begin(async move {
            let mut look = runtime::blocking::spawn(move || gate.judge(&question.asked()));
            let judged = match tokio::time::timeout(LOOK_UP, &mut look).await {
                Ok(judged) => judged,
                Err(_) => {
                    // A network file system may hang. Nobody asks again while it does.
                    let _ = notes.send(Note::Unjudged(making.clone()));
                    look.await
                }
            };
            End::Judged {
                making,
                judgement: judged.ok(),
            }
        });
        false
    }

    /// The paths of a request cannot be looked up in time.
    pub(super) fn unjudged(&mut self, making: Making) {
        let why = "its host paths could not be looked up within 5 s; see that their file systems answer".to_owned();
        let permits = self.input.permits.get_or_insert_default();
        permits.entry(making).or_insert(Permit::Denied(why));
    }

    pub(super) fn judged(&mut self, making: Making, judgement: Option<Judgement>) {
        let stale = self.judging.remove(&making).unwrap_or(false);
        match judgement {
            Some(judgement) if !stale => self.answer(making, judgement),
            Some(_) | None => {
                self.ask(making);
            }
        }
    }

    fn answer(&mut self, making: Making, judgement: Judgement) {
        let permits = self.input.permits.get_or_insert_default();
        let permit = match judgement {
            Judgement::Granted => Permit::Granted,
            Judgement::Withheld(why) => Permit::Withheld(format!(
                "the policy of this node cannot be read, so nothing new is made: {why}"
            )),
            Judgement::Denied { denials, text } => {
                let permit = Permit::Denied(text);
                if permits.get(&making) != Some(&permit) {
                    for denial in &denials {
                        self.metrics.denied(denial.rule.word());
                        tracing::warn!(service = %making.spec.resource, n = making.spec.n, "denied: {denial}");
                    }
                }
                permit
            }
        };
        permits.insert(making, permit);
    }
}

/// A request as it would go to the engine, but for the name of the instance, which no rule is about.
struct Question {
    body: serde_json::Value,
    network: String,
    volumes: String,
}

impl Question {
    fn new(gate: &Gate, making: &Making, spec: &ServiceSpec, cluster: &str) -> Option<Self> {
        let instance = InstanceName {
            namespace: making.spec.resource.namespace.clone()?,
            workload: making.spec.resource.name.clone(),
            slot: "1".parse().ok()?,
        };
        let labels = [(CLUSTER_LABEL.to_owned(), cluster.to_owned())].into();
        let image = &spec.container.image;
        let image = making.image.map_or_else(|| image.clone(), |digest| image.at(digest));
        let container = of_image(&spec.container, &image);
        let request = CreateRequest {
            seat: None,
            name: "",
            instance: &instance,
            spec: &container,
            labels: &labels,
            ports: &making.ports,
            files: &[],
            secrets: &[],
            addresses: &schemas::records::Addresses::default(),
            depends_on: &spec.depends_on,
            gate,
        };
        let (body, _) = translate::create_body(&request, OLDEST_API).ok()?;
        Some(Self {
            body,
            network: translate::network_name(cluster, &instance.namespace),
            volumes: translate::volume_name(&instance.namespace, ""),
        })
    }

    fn asked(&self) -> Asked<'_> {
        Asked {
            address: None,
            body: &self.body,
            network: &self.network,
            volumes: &self.volumes,
            files: &[],
        }
    }
}
