//! Runs one step of the node planner against the engine, and says how it ended. It decides nothing: what an answer means
//! for the instance is the planner's to say. A create whose answer is lost is resolved by reading back, never repeated.

use std::borrow::Cow;
use std::path::PathBuf;

use planner::node::{ContainerState, Failure, Op, OpOutcome, OwnLabels, PullFailure, Step};
use runtime::chain;
use schemas::container::{ContainerSpec, NetworkMode};
use schemas::image::ImageRef;
use schemas::records::{Addresses, ClusterId, FailingReason, InstanceCondition};

use crate::engine::translate::engine_reference;
use crate::engine::{ContainerRuntime, CreateRequest, EngineError, ErrorKind, FileBind, Seat};
use crate::files::Layout;
use crate::policy::Gate;
use crate::secrets::{SecretLayout, SecretVariable};

/// How a step ended, and the kind of the engine's failure, for the metrics.
#[derive(Debug)]
pub struct Ran {
    pub outcome: OpOutcome,
    pub failed: Option<ErrorKind>,
}

impl Ran {
    const fn done() -> Self {
        Self {
            outcome: OpOutcome::Done,
            failed: None,
        }
    }

    /// Its files could not be laid out, so the engine was not asked.
    pub const fn unlaid(failure: Failure) -> Self {
        Self {
            outcome: OpOutcome::Failed(failure),
            failed: None,
        }
    }

    fn failed(op: &Op, error: EngineError) -> Self {
        Self {
            outcome: OpOutcome::Failed(failure(op, &error)),
            failed: Some(error.kind),
        }
    }
}

/// What a container that is about to start needs on this node.
#[derive(Debug, Default)]
pub struct Needs {
    pub files: Option<Layout>,
    pub secrets: Option<SecretLayout>,
    pub addresses: Addresses,
    pub resolver: Option<Resolver>,
}

/// How a container in the cluster's network finds names: its `resolv.conf`, which all of its namespace share.
#[derive(Debug)]
pub struct Resolver {
    pub path: PathBuf,
    pub content: String,
}

impl Resolver {
    fn lay(self) -> std::io::Result<FileBind> {
        let Self { path, content } = self;
        if std::fs::read_to_string(&path).ok().as_deref() != Some(content.as_str()) {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            // Containers hold the file itself: it is written in place, for it only ever says the same.
            std::fs::write(&path, content)?;
        }
        Ok(FileBind {
            source: path,
            target: "/etc/resolv.conf".to_owned(),
        })
    }
}

/// What was laid out.
#[derive(Default)]
struct Laid {
    files: Vec<FileBind>,
    variables: Vec<SecretVariable>,
    addresses: Addresses,
}

/// Runs a step. `created` is told at once when a container was created, before it is started.
pub async fn execute(
    engine: &dyn ContainerRuntime,
    cluster: &ClusterId,
    gate: &Gate,
    step: &Step,
    needs: Needs,
    created: impl FnOnce(OpOutcome) + Send,
) -> Ran {
    let laid = match lay(needs, matches!(step.op, Op::Create { .. })).await {
        Ok(laid) => laid,
        Err(failure) => return Ran::unlaid(failure),
    };
    let done = match &step.op {
        Op::Create { .. } => return create(engine, cluster, gate, step, &laid, created).await,
        Op::Start { id } => return start_again(engine, cluster, step, id).await,
        Op::Stop { id, grace } => engine.stop(id, grace.to_std()).await,
        Op::Kill { id } => engine.kill(id).await,
        Op::Remove { id } => engine.remove(id).await,
        Op::Unpause { id } => engine.unpause(id).await,
        Op::Rename { id, to } => engine.rename(id, to).await,
        Op::UpdateLimits { id, spec } => engine.update_limits(id, &spec.container).await.map(drop),
        Op::Connect { id, seat } => connect(engine, cluster, step, id, seat.as_deref()).await,
    };
    match done {
        Ok(()) => Ran::done(),
        Err(error) => Ran::failed(&step.op, error),
    }
}

/// Lays out the files and secrets of a container that is about to start.
async fn lay(needs: Needs, anew: bool) -> Result<Laid, Failure> {
    let Needs {
        files,
        secrets,
        addresses,
        resolver,
    } = needs;
    let mut laid = Laid {
        addresses,
        ..Laid::default()
    };
    if files.is_none() && secrets.is_none() && resolver.is_none() {
        return Ok(laid);
    }
    let failed = |reason, why: String| Failure {
        reason,
        message: format!("{why}; see that the disk of the agent's data directory has space and can be written"),
    };
    let laying = runtime::blocking::spawn(move || {
        if let Some(layout) = files {
            laid.files = layout
                .lay(anew)
                .map_err(|error| failed(error.reason(), chain(&error)))?;
        }
        if let Some(resolver) = resolver {
            let path = resolver.path.display().to_string();
            let bind = resolver
                .lay()
                .map_err(|error| failed(FailingReason::FileUnavailable, format!("write `{path}`: {error}")))?;
            laid.files.push(bind);
        }
        if let Some(layout) = secrets {
            let (binds, variables) = layout.lay(anew).map_err(|error| Failure {
                reason: FailingReason::SecretUnavailable,
                message: chain(&error),
            })?;
            laid.files.extend(binds);
            laid.variables = variables;
        }
        Ok(laid)
    });
    let broke = |_| {
        failed(
            FailingReason::FileUnavailable,
            "laying out its files broke off".to_owned(),
        )
    };
    laying.await.map_err(broke)?
}

async fn connect(
    engine: &dyn ContainerRuntime,
    cluster: &ClusterId,
    step: &Step,
    id: &str,
    seat: Option<&Seat>,
) -> crate::engine::Result<()> {
    if let Some(seat) = seat {
        engine.ensure_ground(&seat.ground).await?;
        return engine.take_seat(id, seat).await;
    }
    engine
        .ensure_network(cluster.as_str(), &step.instance.namespace)
        .await?;
    engine.connect(cluster.as_str(), id, &step.instance.name()).await
}

async fn create(
    engine: &dyn ContainerRuntime,
    cluster: &ClusterId,
    gate: &Gate,
    step: &Step,
    laid: &Laid,
    created: impl FnOnce(OpOutcome) + Send,
) -> Ran {
    let Op::Create {
        name,
        labels,
        spec,
        image,
        ports,
        seat,
    } = &step.op
    else {
        return Ran::done();
    };
    let container = of_image(&spec.container, image);
    let there = match (spec.container.network_mode, seat) {
        (NetworkMode::Bridge, Some(seat)) => engine.ensure_ground(&seat.ground).await,
        (NetworkMode::Bridge, None) => engine.ensure_network(cluster.as_str(), &step.instance.namespace).await,
        (NetworkMode::Host | NetworkMode::None, _) => Ok(()),
    };
    if let Err(error) = there {
        return Ran::failed(&step.op, error);
    }
    let map = labels.to_map();
    let instance = labels.instance_name();
    let request = CreateRequest {
        name,
        instance: &instance,
        spec: &container,
        labels: &map,
        ports,
        files: &laid.files,
        secrets: &laid.variables,
        addresses: &laid.addresses,
        depends_on: &spec.depends_on,
        seat: seat.as_deref(),
        gate,
    };
    let (id, conditions) = match engine.create(request).await {
        Ok(made) => (made.id, made.conditions),
        Err(error) => match read_back(engine, name, labels, image, &error).await {
            Some(id) => (id, Vec::new()),
            None => return Ran::failed(&step.op, error),
        },
    };
    let conditions: Vec<InstanceCondition> = conditions;
    created(OpOutcome::Created {
        id: id.clone(),
        conditions,
    });
    start(engine, &id).await
}

/// What is asked of the engine, with its image as it is told that: by a digest where the tag was settled.
#[must_use]
pub fn of_image<'s>(spec: &'s ContainerSpec, image: &ImageRef) -> Cow<'s, ContainerSpec> {
    if spec.image == *image {
        return Cow::Borrowed(spec);
    }
    Cow::Owned(ContainerSpec {
        image: image.clone(),
        ..spec.clone()
    })
}

/// After a create whose answer was lost, or that found the name taken: the container of that name, if it is the very one.
/// Its labels may have been copied by a person, so its image counts too.
async fn read_back(
    engine: &dyn ContainerRuntime,
    name: &str,
    labels: &OwnLabels,
    image: &ImageRef,
    error: &EngineError,
) -> Option<String> {
    if !matches!(
        error.kind,
        ErrorKind::Conflict { .. } | ErrorKind::Timeout | ErrorKind::Unavailable
    ) {
        return None;
    }
    let found = engine.inspect(name).await.ok()?.observed;
    let same_image = found.image == image.as_str() || found.image == engine_reference(image);
    (found.name == name && found.own().as_ref() == Some(labels) && same_image).then_some(found.id)
}

/// Starts an ended container. Where the network of its namespace has gone since, that is made again first.
async fn start_again(engine: &dyn ContainerRuntime, cluster: &ClusterId, step: &Step, id: &str) -> Ran {
    let ran = start(engine, id).await;
    let lacks_network = ran.failed == Some(ErrorKind::NotFound)
        && matches!(&ran.outcome, OpOutcome::Failed(failure) if failure.message.contains("network"));
    // Its place in the cluster's network is put right by a step of its own, once it runs.
    if !lacks_network || connect(engine, cluster, step, id, None).await.is_err() {
        return ran;
    }
    start(engine, id).await
}

async fn start(engine: &dyn ContainerRuntime, id: &str) -> Ran {
    let Err(error) = engine.start(id).await else {
        return Ran::done();
    };
    let ambiguous = matches!(
        error.kind,
        ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::NotFound | ErrorKind::Conflict { .. }
    );
    if ambiguous {
        let done = match engine.inspect(id).await {
            Ok(found) => match found.observed.state {
                ContainerState::Running => true,
                // Somebody removes it: the next list says what is to be done about that.
                ContainerState::Removing => true,
                ContainerState::Created
                | ContainerState::Paused
                | ContainerState::Restarting
                | ContainerState::Exited { .. }
                | ContainerState::Dead => false,
            },
            Err(gone) => gone.kind == ErrorKind::NotFound,
        };
        if done {
            return Ran::done();
        }
    }
    Ran::failed(&Op::Start { id: id.to_owned() }, error)
}

/// What a failed call means for people and for the planner.
fn failure(op: &Op, error: &EngineError) -> Failure {
    let reason = match (&error.kind, op) {
        (ErrorKind::Unavailable, _) => FailingReason::EngineUnavailable,
        (ErrorKind::NoSpace, _) => FailingReason::DiskFull,
        (ErrorKind::PortTaken { .. }, _) => FailingReason::PortTaken,
        (ErrorKind::ImageNotFound, _) => FailingReason::ImageNotFound,
        (ErrorKind::Policy, _) => FailingReason::PolicyDenied,
        (ErrorKind::Conflict { .. }, Op::Create { .. } | Op::Rename { .. }) => FailingReason::NameTaken,
        (_, Op::Create { .. }) => FailingReason::CreateFailed,
        (_, Op::Stop { .. } | Op::Kill { .. } | Op::Remove { .. }) => FailingReason::StopFailed,
        (
            _,
            Op::Start { .. } | Op::Unpause { .. } | Op::Rename { .. } | Op::UpdateLimits { .. } | Op::Connect { .. },
        ) => FailingReason::StartFailed,
    };
    Failure {
        reason,
        message: sentence(error),
    }
}

/// A failed pull, and when it is tried again: `delay_ms` after `now_ms`.
pub fn pull_failure(error: &EngineError, now_ms: u64, delay_ms: u64, others_asked: bool) -> PullFailure {
    PullFailure {
        reason: pull_reason(&error.kind),
        message: sentence(error),
        retry_ms: now_ms.saturating_add(delay_ms),
        others_asked,
    }
}

/// What a failed pull is reported as.
pub fn pull_reason(kind: &ErrorKind) -> FailingReason {
    match kind {
        ErrorKind::ImageNotFound | ErrorKind::NotFound => FailingReason::ImageNotFound,
        ErrorKind::Denied => FailingReason::ImageDenied,
        ErrorKind::NoSpace => FailingReason::DiskFull,
        ErrorKind::Unavailable => FailingReason::EngineUnavailable,
        ErrorKind::Timeout
        | ErrorKind::Conflict { .. }
        | ErrorKind::PortTaken { .. }
        | ErrorKind::Registry
        | ErrorKind::Refused
        | ErrorKind::Policy
        | ErrorKind::TooOld
        | ErrorKind::Other => FailingReason::ImagePullFailed,
    }
}

/// The error and its remedy as one sentence.
#[must_use]
pub fn sentence(error: &EngineError) -> String {
    format!("{error}; {}", error.remedy())
}
