//! Fetching an image: progress over its layers, passing faults retried, final ones said at once. Called by the Docker
//! engine only. What an engine says of a failed pull is sorted by its words, for its statuses differ between releases.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use runtime::backoff::Backoff;
use schemas::image::{ImagePin, ImageRef};
use schemas::registry::registry_of;
use serde_json::Value;

use super::credentials::Credentials;
use super::wire::{Call, Wire, encode};
use super::{EngineError, ErrorKind, ImageId, LocalImage, ProgressSink, PullProgress, Result};
use crate::logins::Login;
use zeroize::Zeroizing;

/// How often a passing fault is retried before it is told. Whoever asked asks again after a while.
const RETRIES: u32 = 4;
/// Bounds of the delay between attempts.
const DELAYS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));
/// No word from the engine for so long is a hang.
const SILENCE: Duration = Duration::from_secs(300);
/// Time to look an image up.
const LOOK_UP: Duration = Duration::from_secs(10);
/// Progress is told at most this often.
const TELL: Duration = Duration::from_millis(100);
/// Layers that are counted; an image has at most 127.
const MAX_LAYERS: usize = 1_000;

/// A local image.
pub(super) async fn look_up(wire: &Wire, image: &ImageRef) -> Result<Option<LocalImage>> {
    let act = format!("look up image `{image}`");
    let path = format!("/images/{}/json", super::translate::engine_reference(image));
    match wire.call(&act, LOOK_UP, Call::get(&path)).await {
        Ok(answer) => Ok(here(&answer, image)),
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::ImageNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The image of an inspection, with the digest that the registry in `image` knows it by.
fn here(answer: &Value, image: &ImageRef) -> Option<LocalImage> {
    let id = answer["Id"].as_str()?;
    let digests = answer["RepoDigests"].as_array().into_iter().flatten();
    let mut digests = digests
        .filter_map(Value::as_str)
        .filter_map(|text| text.parse::<ImageRef>().ok())
        .filter(|known| known.is_of_same_repository(image))
        .filter_map(|known| known.digest()?.parse().ok());
    let digest = match image.digest() {
        Some(digest) => digest.parse().ok(),
        // Of two that came under one name, either is this very image.
        None => digests.next(),
    };
    let pin = digest.zip(id.parse().ok());
    Some(LocalImage {
        id: ImageId(id.to_owned()),
        pin: pin.map(|(digest, id)| ImagePin { digest, id }),
        loaded: false,
    })
}

/// Fetches an image, with retries.
pub(super) async fn pull(
    wire: &Wire,
    credentials: &Credentials,
    image: &ImageRef,
    login: Option<&Login>,
    sink: &ProgressSink,
) -> Result<LocalImage> {
    let mut backoff = Backoff::new(DELAYS.0, DELAYS.1);
    let mut progress = Progress::default();
    loop {
        progress.shown.attempt += 1;
        let error = match attempt(wire, credentials, image, login, sink, &mut progress).await {
            Ok(image) => return Ok(image),
            Err(error) => error,
        };
        if error.kind != ErrorKind::Registry || progress.shown.attempt > RETRIES {
            return Err(error);
        }
        tracing::debug!(image = image.as_str(), attempt = progress.shown.attempt, error = %error, "a pull failed and is tried again");
        tokio::time::sleep(backoff.delay()).await;
    }
}

async fn attempt(
    wire: &Wire,
    credentials: &Credentials,
    image: &ImageRef,
    login: Option<&Login>,
    sink: &ProgressSink,
    progress: &mut Progress,
) -> Result<LocalImage> {
    let act = format!("pull image `{image}`");
    let auth = match login {
        Some(login) => Some(login.header()),
        // A broken configuration must not stop a pull that needs none: the registry's refusal is then the error.
        None => credentials.header(image).await.map_or_else(
            |error| {
                let cause = std::error::Error::source(&error)
                    .map(ToString::to_string)
                    .unwrap_or_default();
                tracing::warn!(image = image.as_str(), cause, "no credentials: {error}");
                None
            },
            |header| header.map(Zeroizing::new),
        ),
    };
    let whom = match login {
        Some(login) => format!("{} refuses `{}`", login.registry, login.user),
        None if auth.is_some() => format!("{} refuses this host's own login", registry_of(image)),
        None => format!("{} wants a login, and none is declared for it", registry_of(image)),
    };
    let tag = image.digest().or(image.tag()).unwrap_or("latest");
    let path = format!("/images/create?fromImage={}&tag={}", encode(&image.name()), encode(tag));
    let call = Call {
        method: "POST",
        path: &path,
        body: None,
        registry_auth: auth.as_deref().map(String::as_str),
    };
    let sorted = |error: EngineError| {
        let error = sort(&act, error);
        if error.kind == ErrorKind::Denied {
            return EngineError::new(ErrorKind::Denied, &act, &format!("{whom}: {}", error.said));
        }
        error
    };
    let mut lines = wire.lines(&act, SILENCE, call).await.map_err(sorted)?;
    loop {
        let line = match tokio::time::timeout(SILENCE, lines.next()).await {
            Ok(line) => line.map_err(sorted)?,
            Err(_) => {
                return Err(EngineError::new(
                    ErrorKind::Timeout,
                    &act,
                    "no progress for five minutes",
                ));
            }
        };
        let Some(line) = line else { break };
        let said = line["errorDetail"]["message"]
            .as_str()
            .or_else(|| line["error"].as_str());
        if let Some(said) = said {
            return Err(sorted(EngineError::new(ErrorKind::Other, &act, said)));
        }
        progress.take(&line, sink);
    }
    look_up(wire, image)
        .await?
        .ok_or_else(|| EngineError::new(ErrorKind::Registry, &act, "the pull ended without the image"))
}

/// What a failed pull means, by the engine's words.
fn sort(act: &str, error: EngineError) -> EngineError {
    match &error.kind {
        // The engine itself is gone or full: no matter of the registry.
        ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::NoSpace | ErrorKind::TooOld => return error,
        ErrorKind::NotFound
        | ErrorKind::Conflict { .. }
        | ErrorKind::PortTaken { .. }
        | ErrorKind::Denied
        | ErrorKind::ImageNotFound
        | ErrorKind::Registry
        | ErrorKind::Refused
        | ErrorKind::Policy
        | ErrorKind::Other => {}
    }
    let low = error.said.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| low.contains(word));
    let kind = if has(&["no space left on device", "disk quota exceeded"]) {
        ErrorKind::NoSpace
    } else if has(&[
        "unauthorized",
        "authentication required",
        "no basic auth",
        "denied",
        "forbidden",
    ]) {
        ErrorKind::Denied
    } else if has(&[
        "manifest unknown",
        "not found",
        "name unknown",
        "does not exist",
        "no matching manifest",
        "unsupported media type",
    ]) && !has(&[
        "server misbehaving",
        "no such host",
        "500 internal",
        "502 bad gateway",
        "503 service",
    ]) {
        ErrorKind::ImageNotFound
    } else if error.kind == ErrorKind::Refused || has(&["invalid reference"]) {
        ErrorKind::Refused
    } else {
        // Refused connections, resets, 5xx, "toomanyrequests", certificates being renewed: what may pass.
        ErrorKind::Registry
    };
    EngineError::new(kind, act, &error.said)
}

/// Adds up the layers.
#[derive(Default)]
struct Progress {
    layers: BTreeMap<String, (u64, u64)>,
    shown: PullProgress,
    told: Option<Instant>,
}

impl Progress {
    fn take(&mut self, line: &Value, sink: &ProgressSink) {
        let Some(id) = line["id"].as_str() else { return };
        let (status, detail) = (line["status"].as_str().unwrap_or_default(), &line["progressDetail"]);
        let known = self.layers.len() < MAX_LAYERS || self.layers.contains_key(id);
        match status {
            "Pulling fs layer" | "Waiting" | "Downloading" if known => {
                let layer = self.layers.entry(id.to_owned()).or_default();
                if let (Some(done), Some(total)) = (detail["current"].as_u64(), detail["total"].as_u64()) {
                    *layer = (done.min(total), total);
                }
            }
            "Verifying Checksum" | "Download complete" | "Pull complete" | "Already exists" if known => {
                let layer = self.layers.entry(id.to_owned()).or_default();
                layer.0 = layer.1;
            }
            _ => return,
        }
        let sum = |pick: fn(&(u64, u64)) -> u64| self.layers.values().map(pick).fold(0, u64::saturating_add);
        (self.shown.done_bytes, self.shown.total_bytes) = (sum(|layer| layer.0), sum(|layer| layer.1));
        let percent = self
            .shown
            .done_bytes
            .saturating_mul(100)
            .checked_div(self.shown.total_bytes)
            .unwrap_or(0);
        self.shown.percent = u8::try_from(percent.min(100)).unwrap_or(100).max(self.shown.percent);
        if self.told.is_none_or(|at| at.elapsed() >= TELL) {
            self.told = Some(Instant::now());
            sink(self.shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kind(said: &str) -> ErrorKind {
        sort("pull", EngineError::new(ErrorKind::Other, "pull", said)).kind
    }

    #[test]
    fn failures_are_final_only_when_waiting_cannot_help() {
        assert_eq!(
            kind("manifest for r:5000/a:1 not found: manifest unknown: manifest unknown"),
            ErrorKind::ImageNotFound
        );
        assert_eq!(
            kind("Get http://r:5000/v2/a/manifests/1: unauthorized: authentication required"),
            ErrorKind::Denied
        );
        assert_eq!(
            kind("Get http://r:5000/v2/a/manifests/1: no basic auth credentials"),
            ErrorKind::Denied
        );
        assert_eq!(
            kind("pull access denied for a, repository does not exist or may require 'docker login'"),
            ErrorKind::Denied
        );
        assert_eq!(
            kind("failed to register layer: write /x: no space left on device"),
            ErrorKind::NoSpace
        );
        for passing in [
            "Get http://r:5000/v2/: dial tcp 127.0.0.1:5000: connect: connection refused",
            "Get http://r:5000/v2/: dial tcp: lookup r on 1.1.1.1:53: no such host",
            "received unexpected HTTP status: 500 Internal Server Error",
            "toomanyrequests: You have reached your pull rate limit",
            "unexpected EOF",
            "net/http: TLS handshake timeout",
        ] {
            assert_eq!(kind(passing), ErrorKind::Registry, "{passing}");
        }
    }

    #[test]
    fn an_image_has_the_digest_of_the_registry_it_is_asked_under() {
        let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let answer = json!({
            "Id": digest("1"),
            "RepoDigests": [format!("other.example/app@{}", digest("2")), "nonsense", 7, format!("app@{}", digest("3"))],
        });
        let pin = |answer: &Value, image: &str| here(answer, &image.parse().unwrap()).unwrap().pin;
        let found = |image: &str| pin(&answer, image).map(|pin| pin.digest.to_string());
        assert_eq!(found("other.example/app:1"), Some(digest("2")));
        for docker in ["app:1", "docker.io/library/app:1", "index.docker.io/library/app"] {
            assert_eq!(found(docker), Some(digest("3")), "{docker}");
        }
        assert_eq!(found("third.example/app:1"), None);
        assert_eq!(pin(&json!({ "Id": digest("1"), "RepoDigests": null }), "app:1"), None);
        assert_eq!(here(&json!({ "RepoDigests": [] }), &"app:1".parse().unwrap()), None);
    }

    #[test]
    fn percent_never_falls_though_the_total_grows() {
        let sink: ProgressSink = std::sync::Arc::new(|_| {});
        let mut progress = Progress::default();
        let mut take = |line: Value| {
            progress.take(&line, &sink);
            progress.shown.percent
        };
        assert_eq!(
            take(json!({ "status": "Downloading", "id": "a", "progressDetail": { "current": 50, "total": 100 } })),
            50
        );
        assert_eq!(
            take(json!({ "status": "Downloading", "id": "b", "progressDetail": { "current": 0, "total": 300 } })),
            50
        );
        assert_eq!(take(json!({ "status": "Download complete", "id": "b" })), 87);
        assert_eq!(
            take(json!({ "status": "Extracting", "id": "a", "progressDetail": { "current": 1, "total": 9 } })),
            87
        );
        assert_eq!(take(json!({ "status": "Pull complete", "id": "a" })), 100);
        assert_eq!(take(json!({ "status": 5, "id": ["x"] })), 100);
    }
}
