//! The host's own registry credentials, as `docker login` left them: `$DOCKER_CONFIG/config.json` or
//! `~/.docker/config.json`, with credential helpers. Read anew for every pull, so that a login is heard at once. Called by
//! pulls only. Secrets are never logged, shown or kept.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use schemas::image::ImageRef;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The key of Docker's own registry.
const HUB: &str = "https://index.docker.io/v1/";
/// The largest configuration or helper answer that is read.
const MAX_BYTES: u64 = 1 << 20;
/// Time for a credential helper.
const HELPER: Duration = Duration::from_secs(10);

/// Where credentials are: the directory of a Docker client configuration.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    directory: Option<PathBuf>,
    helper_deadline: Duration,
    /// Where helpers are looked for; PATH when None.
    helper_path: Option<PathBuf>,
}

/// Why credentials could not be had. None of them holds a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("read {}: it is no JSON object of at most 1 MiB", path.display())]
    Damaged { path: PathBuf },
    #[error("`{0}` is not the name of a credential helper")]
    HelperName(String),
    #[error("run docker-credential-{name}")]
    Helper { name: String, source: std::io::Error },
    #[error("docker-credential-{name} {said}")]
    HelperFailed { name: String, said: String },
}

impl Credentials {
    /// `$DOCKER_CONFIG`, else `~/.docker`.
    pub(super) fn of_this_host() -> Self {
        let variable = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self::in_directory(variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker"))))
    }

    pub(super) fn in_directory(directory: Option<PathBuf>) -> Self {
        Self {
            directory,
            helper_deadline: HELPER,
            helper_path: None,
        }
    }

    /// The value of `X-Registry-Auth` for an image's registry; None when the host has no credentials for it.
    pub(super) async fn header(&self, image: &ImageRef) -> Result<Option<String>, CredentialError> {
        let server = match image.registry() {
            None | Some("docker.io" | "index.docker.io") => HUB,
            Some(registry) => registry,
        };
        Ok(self
            .lookup(server)
            .await?
            .map(|login| URL_SAFE.encode(login.to_string())))
    }

    async fn lookup(&self, server: &str) -> Result<Option<Value>, CredentialError> {
        let Some(path) = self.directory.as_ref().map(|directory| directory.join("config.json")) else {
            return Ok(None);
        };
        let Some(config) = read(&path).await? else {
            return Ok(None);
        };
        let host = host_of(server);
        let helpers = config["credHelpers"].as_object().into_iter().flatten();
        let own = helpers
            .into_iter()
            .find(|(key, _)| host_of(key) == host)
            .and_then(|(_, name)| name.as_str());
        if let Some(name) = own.or_else(|| config["credsStore"].as_str().filter(|name| !name.is_empty()))
            && let Some(login) = self.ask(name, server).await?
        {
            return Ok(Some(login));
        }
        let auths = config["auths"].as_object().into_iter().flatten();
        Ok(auths
            .into_iter()
            .find(|(key, _)| host_of(key) == host)
            .and_then(|(_, entry)| login(entry, server)))
    }

    /// Asks `docker-credential-<name>`, which is found in PATH; no shell is involved.
    async fn ask(&self, name: &str, server: &str) -> Result<Option<Value>, CredentialError> {
        let good = !name.is_empty()
            && name.len() <= 64
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !good {
            return Err(CredentialError::HelperName(super::clean(name, 64)));
        }
        let io = |source| CredentialError::Helper {
            name: name.to_owned(),
            source,
        };
        let failed = |said: &str| CredentialError::HelperFailed {
            name: name.to_owned(),
            said: said.to_owned(),
        };
        let mut command = tokio::process::Command::new(format!("docker-credential-{name}"));
        if let Some(path) = &self.helper_path {
            command.env("PATH", path);
        }
        let mut child = command
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(io)?;
        let work = async {
            if let Some(mut stdin) = child.stdin.take() {
                // A helper that reads nothing closes the pipe; its answer tells.
                let _sent = stdin.write_all(server.as_bytes()).await;
            }
            let mut answer = Vec::new();
            if let Some(stdout) = child.stdout.take() {
                stdout.take(MAX_BYTES).read_to_end(&mut answer).await?;
            }
            Ok::<_, std::io::Error>((child.wait().await?, answer))
        };
        let (status, answer) = match tokio::time::timeout(self.helper_deadline, work).await {
            Ok(done) => done.map_err(io)?,
            Err(_) => return Err(failed("did not answer in time")),
        };
        if !status.success() {
            // The protocol's one message that is no failure.
            let none = String::from_utf8_lossy(&answer)
                .to_ascii_lowercase()
                .contains("credentials not found");
            return if none { Ok(None) } else { Err(failed("failed")) };
        }
        let answer: Value = serde_json::from_slice(&answer).map_err(|_| failed("gave no JSON"))?;
        let secret = answer["Secret"].as_str().unwrap_or_default();
        Ok(match answer["Username"].as_str().unwrap_or_default() {
            "<token>" => Some(json!({ "identitytoken": secret, "serveraddress": server })),
            "" => None,
            user => Some(json!({ "username": user, "password": secret, "serveraddress": server })),
        })
    }
}

async fn read(path: &Path) -> Result<Option<Value>, CredentialError> {
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(CredentialError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes).await;
    read.map_err(|source| CredentialError::Read {
        path: path.to_owned(),
        source,
    })?;
    let small = u64::try_from(bytes.len()).is_ok_and(|len| len <= MAX_BYTES);
    let value = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .filter(|value| small && value.is_object());
    value
        .map(Some)
        .ok_or_else(|| CredentialError::Damaged { path: path.to_owned() })
}

/// Keys of the configuration are host names, or URLs with any path.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    match rest.split_once('/').map_or(rest, |(host, _)| host) {
        "docker.io" | "registry-1.docker.io" => "index.docker.io",
        host => host,
    }
}

fn login(entry: &Value, server: &str) -> Option<Value> {
    if let Some(token) = entry["identitytoken"].as_str().filter(|token| !token.is_empty()) {
        return Some(json!({ "identitytoken": token, "serveraddress": server }));
    }
    let pair = entry["auth"].as_str().filter(|auth| !auth.is_empty()).and_then(|auth| {
        let bytes = STANDARD.decode(auth.trim()).ok()?;
        let (user, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
        Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
    });
    let (user, password) = match pair {
        Some(pair) => pair,
        None => (
            entry["username"].as_str()?.to_owned(),
            entry["password"].as_str()?.to_owned(),
        ),
    };
    Some(json!({ "username": user, "password": password, "serveraddress": server }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(config: &str) -> (tempfile::TempDir, Credentials) {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("config.json"), config).expect("a file");
        let credentials = Credentials::in_directory(Some(directory.path().to_owned()));
        (directory, credentials)
    }

    async fn found(config: &str, image: &str) -> Option<Value> {
        let (_directory, credentials) = written(config);
        let header = credentials
            .header(&image.parse().expect("an image"))
            .await
            .expect("a lookup")?;
        serde_json::from_slice(&URL_SAFE.decode(header).expect("base64")).expect("JSON")
    }

    #[tokio::test]
    async fn a_login_is_found_under_every_form_of_its_key() {
        for key in ["r.example:5000", "http://r.example:5000", "https://r.example:5000/v2/"] {
            let config = json!({ "auths": { key: { "auth": STANDARD.encode("me:se:cret") } } }).to_string();
            let login = found(&config, "r.example:5000/a/b:1").await.expect(key);
            assert_eq!(
                (&login["username"], &login["password"]),
                (&json!("me"), &json!("se:cret")),
                "{key}"
            );
            assert_eq!(found(&config, "other.example/a").await, None);
            assert_eq!(found(&config, "a").await, None);
        }
        let hub = json!({ "auths": { HUB: { "identitytoken": "t" } } }).to_string();
        assert_eq!(
            found(&hub, "nginx").await.map(|login| login["identitytoken"].clone()),
            Some(json!("t"))
        );
        assert!(found(&hub, "docker.io/library/nginx").await.is_some());
    }

    #[tokio::test]
    async fn a_damaged_configuration_is_said_and_a_missing_one_is_none() {
        let (_directory, credentials) = written("{");
        let error = credentials
            .header(&"a".parse().expect("an image"))
            .await
            .expect_err("it is damaged");
        assert!(error.to_string().contains("config.json"), "{error}");
        let empty = tempfile::tempdir().expect("a directory");
        let none = Credentials::in_directory(Some(empty.path().to_owned()));
        assert!(matches!(none.header(&"a".parse().expect("an image")).await, Ok(None)));
        assert_eq!(
            found("{\"auths\": {\"r.example\": {\"auth\": \"%%%\"}}}", "r.example/a").await,
            None
        );
    }

    #[tokio::test]
    async fn a_helper_with_a_path_in_its_name_is_not_run() {
        for name in ["../x", "a/b", "a b", "a;b", "$x"] {
            let (_directory, credentials) = written(&json!({ "credsStore": name }).to_string());
            let error = credentials
                .header(&"a".parse().expect("an image"))
                .await
                .expect_err(name);
            assert!(matches!(error, CredentialError::HelperName(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn a_helper_is_asked_by_the_protocol_and_ended_when_it_hangs() {
        use std::os::unix::fs::PermissionsExt as _;
        let helper = |script: &str| {
            let config = json!({ "credHelpers": { "r.example": "test" }, "auths": { "r.example": { "auth": STANDARD.encode("a:b") } } });
            let (directory, mut credentials) = written(&config.to_string());
            let path = directory.path().join("docker-credential-test");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a helper");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
            credentials.helper_path = Some(directory.path().to_owned());
            credentials.helper_deadline = Duration::from_millis(500);
            (directory, credentials)
        };
        // It echoes the server it was told, as its answer's secret, when it was called with `get`.
        let (_one, good) = helper("read -r server; echo '{\"Username\":\"me\",\"Secret\":\"'$1-$server'\"}'");
        let login = good.lookup("r.example").await.expect("a look-up").expect("a login");
        assert_eq!(
            (&login["username"], &login["password"]),
            (&json!("me"), &json!("get-r.example"))
        );
        let (_two, token) = helper("echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}'");
        let login = token.lookup("r.example").await.expect("a look-up").expect("a login");
        assert_eq!(login["identitytoken"], json!("t"));
        let (_three, none) = helper("echo 'credentials not found in native keychain'; exit 1");
        let login = none
            .lookup("r.example")
            .await
            .expect("a look-up")
            .expect("the file's own login");
        assert_eq!(login["username"], json!("a"));
        for (script, said) in [
            ("while :; do :; done", "in time"),
            ("exit 3", "failed"),
            ("echo secret-text", "no JSON"),
        ] {
            let (_directory, bad) = helper(script);
            let error = bad.lookup("r.example").await.expect_err(script).to_string();
            assert!(error.contains(said) && !error.contains("secret-text"), "{error}");
        }
    }
}
