//! Health checks: one task for each probed container, kept in step with what the node planner says is to be probed. The
//! agent's loop calls [`Prober::keep`] after every plan and reads [`Prober::results`] before every plan; it is woken only
//! when a result changes. Every check is bounded in time and size, and closes what it opened.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use planner::node::{Probe, ProbeTarget, Probed};
use schemas::container::{ExecCheck, HealthCheck, HttpCheck, HttpMethod, HttpScheme, NetworkMode, TcpCheck};
use schemas::units::{Span, Text};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::engine::{ContainerRuntime, clean};

mod tls;

const INTERVAL: Span = Span::from_secs(10);
const TIMEOUT: Span = Span::from_secs(3);
const RETRIES: u32 = 3;
/// The shortest interval that is kept to.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
/// The most of an answer that is read: its status line is all that counts.
const MAX_HEAD: usize = 8 << 10;
/// The longest message of a failed check.
const MAX_MESSAGE: usize = 200;

/// Runs the checks of a node.
pub struct Prober {
    engine: Arc<dyn ContainerRuntime>,
    board: Arc<Board>,
    running: Mutex<BTreeMap<String, Running>>,
    next: AtomicU64,
}

struct Running {
    target: ProbeTarget,
    /// Which run this is: only its own results count.
    number: u64,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the checks last said; wakes the loop when that changes.
#[derive(Default)]
struct Board {
    /// By container: which run may write, and what it last said.
    results: Mutex<BTreeMap<String, (u64, Option<Probe>)>>,
    changed: Arc<Notify>,
}

impl Prober {
    /// `changed` is told when a result differs from the one before it.
    #[must_use]
    pub fn new(engine: Arc<dyn ContainerRuntime>, changed: Arc<Notify>) -> Self {
        Self {
            engine,
            board: Arc::new(Board {
                results: Mutex::default(),
                changed,
            }),
            running: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    /// Probes exactly these containers, by id. A target that is the same as before goes on; one that differs begins anew.
    pub fn keep(&self, targets: &BTreeMap<String, ProbeTarget>) {
        let mut running = lock(&self.running);
        running.retain(|id, one| targets.get(id) == Some(&one.target));
        let mut results = lock(&self.board.results);
        results.retain(|id, (number, _)| running.get(id).is_some_and(|one| one.number == *number));
        for (id, target) in targets {
            if running.contains_key(id) {
                continue;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            results.insert(id.clone(), (number, None));
            let probing = run(
                id.clone(),
                number,
                target.clone(),
                Arc::clone(&self.engine),
                Arc::clone(&self.board),
            );
            let task = tokio::spawn(probing).abort_handle();
            running.insert(
                id.clone(),
                Running {
                    target: target.clone(),
                    number,
                    task,
                },
            );
        }
    }

    /// The last result of every probed container that has one, by id.
    #[must_use]
    pub fn results(&self) -> BTreeMap<String, Probed> {
        let running = lock(&self.running);
        let results = lock(&self.board.results);
        results
            .iter()
            .filter_map(|(id, (number, result))| {
                let target = &running.get(id).filter(|one| one.number == *number)?.target;
                let probe = result.clone()?;
                let target = target.clone();
                Some((id.clone(), Probed { target, probe }))
            })
            .collect()
    }
}

impl Board {
    /// A run that was ended, but not yet stopped, must not bring its result back.
    fn put(&self, id: &str, number: u64, result: Probe) {
        let mut results = lock(&self.results);
        let Some((_, last)) = results.get_mut(id).filter(|(owner, _)| *owner == number) else {
            return;
        };
        let differs = last.as_ref() != Some(&result);
        *last = Some(result);
        drop(results);
        if differs {
            self.changed.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one; if it did, the value would still be whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts successes and failures of one container; pure.
#[derive(Debug)]
struct Judge {
    retries: u32,
    failures: u32,
    result: Probe,
}

impl Judge {
    fn new(check: &HealthCheck) -> Self {
        Self {
            retries: check.retries.unwrap_or(RETRIES).max(1),
            failures: 0,
            result: Probe::Unknown,
        }
    }

    /// The result after one more check. One success is healthy; `retries` failures in a row are unhealthy, those of the
    /// start period not counted until it has been healthy once.
    fn after(&mut self, check: Result<(), String>, starting: bool) -> Probe {
        match check {
            Ok(()) => (self.failures, self.result) = (0, Probe::Healthy),
            Err(_) if starting && self.result == Probe::Unknown => {}
            Err(message) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= self.retries {
                    self.result = Probe::Unhealthy { message };
                }
            }
        }
        self.result.clone()
    }
}

async fn run(id: String, number: u64, target: ProbeTarget, engine: Arc<dyn ContainerRuntime>, board: Arc<Board>) {
    let begun = Instant::now();
    let check = &target.check;
    let start_period = check.start_period.map_or(Duration::ZERO, Span::to_std);
    let interval = check.interval.unwrap_or(INTERVAL).to_std().max(LEAST_INTERVAL);
    let mut judge = Judge::new(check);
    // The first check is at once: a container is ready as soon as it can be. While it is not, it is looked at more often.
    let mut delay = LEAST_INTERVAL.min(interval);
    loop {
        let outcome = once(&id, &target, engine.as_ref()).await;
        let starting = begun.elapsed() < start_period;
        let healthy_before = judge.result == Probe::Healthy;
        let result = judge.after(outcome, starting);
        let settled = result != Probe::Unknown;
        if settled {
            board.put(&id, number, result);
        }
        // Failures count at the person's interval; only the wait for the first success within a start period is shorter.
        let next = if settled || healthy_before || !starting {
            interval
        } else {
            delay
        };
        delay = (delay * 2).min(interval);
        tokio::time::sleep(next).await;
    }
}

/// One check, within its timeout.
async fn once(id: &str, target: &ProbeTarget, engine: &dyn ContainerRuntime) -> Result<(), String> {
    let timeout = target.check.timeout.unwrap_or(TIMEOUT).to_std();
    let HealthCheck {
        http,
        tcp,
        exec,
        interval: _,
        timeout: _,
        retries: _,
        start_period: _,
    } = &target.check;
    if let Some(ExecCheck { command }) = exec {
        let command: Vec<String> = command.iter().map(|Text(text)| text.clone()).collect();
        return match engine.exec(id, &command, timeout).await {
            Ok(end) if end.code == 0 => Ok(()),
            Ok(end) if end.output.is_empty() => Err(format!("the command ended with code {}", end.code)),
            Ok(end) => Err(clean(
                &format!("the command ended with code {}: {}", end.code, end.output),
                MAX_MESSAGE,
            )),
            Err(error) => Err(clean(&error.to_string(), MAX_MESSAGE)),
        };
    }
    let work = async {
        if let Some(check) = http {
            get(address(target, check.port)?, check).await
        } else if let Some(TcpCheck { port }) = tcp {
            connect(address(target, *port)?).await.map(drop)
        } else {
            Err("the health check has neither http, tcp nor exec".to_owned())
        }
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {} s", timeout.as_secs_f32())),
    }
}

/// Where a container is reached: its own address in its network, loopback in the host's.
fn address(target: &ProbeTarget, port: u16) -> Result<SocketAddr, String> {
    let ip = match target.network {
        NetworkMode::Bridge => *target.addresses.first().ok_or("the container has no address")?,
        NetworkMode::Host => IpAddr::V4(Ipv4Addr::LOCALHOST),
        NetworkMode::None => return Err("with networkMode none, only an exec check can reach the container".to_owned()),
    };
    Ok(SocketAddr::new(ip, port))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| clean(&format!("connect to {address}: {error}"), MAX_MESSAGE))?;
    // Closed at once with a reset: no probe leaves a connection behind in a waiting state.
    let _set = stream.set_zero_linger();
    Ok(stream)
}

async fn get(address: SocketAddr, check: &HttpCheck) -> Result<(), String> {
    let HttpCheck {
        port: _,
        path,
        method,
        scheme,
        headers,
        status,
    } = check;
    let path = path.as_deref().unwrap_or("/");
    let method = match method {
        HttpMethod::Get => "GET",
        HttpMethod::Head => "HEAD",
        HttpMethod::Post => "POST",
        HttpMethod::Put => "PUT",
        HttpMethod::Options => "OPTIONS",
    };
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    let given = |name: &str| headers.keys().any(|key| key.eq_ignore_ascii_case(name));
    if !given("host") {
        request.push_str(&format!("Host: {address}\r\n"));
    }
    if !given("user-agent") {
        request.push_str("User-Agent: reeve-probe\r\n");
    }
    if matches!(method, "POST" | "PUT") {
        request.push_str("Content-Length: 0\r\n");
    }
    for (name, value) in headers {
        let plain = |text: &str| !text.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0));
        if plain(name) && plain(value) && !name.contains(':') {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    request.push_str("\r\n");
    let stream = connect(address).await?;
    let code = match scheme {
        HttpScheme::Http => exchange(stream, &request).await?,
        HttpScheme::Https => exchange(tls::wrap(stream, address.ip()).await?, &request).await?,
    };
    let good = status.map_or((200..400).contains(&code), |status| code == status);
    if good {
        Ok(())
    } else {
        Err(format!("{method} {} answered {code}", clean(path, 100)))
    }
}

/// Sends a request and reads the status of the answer, past any 1xx.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Result<u16, String> {
    let broke = |error: std::io::Error| clean(&format!("the connection broke: {error}"), MAX_MESSAGE);
    stream.write_all(request.as_bytes()).await.map_err(broke)?;
    let mut head = Vec::with_capacity(1_024);
    loop {
        while let Some((code, rest)) = status(&head)? {
            if !(100..200).contains(&code) || code == 101 {
                return Ok(code);
            }
            let Some(end) = find(&head[rest..], b"\r\n\r\n") else {
                break;
            };
            head.drain(..rest + end + 4);
        }
        if head.len() >= MAX_HEAD {
            return Err("the answer's head is too long".to_owned());
        }
        let mut part = [0; 1_024];
        let size = stream.read(&mut part).await.map_err(broke)?;
        if size == 0 {
            return Err("the connection was closed without an answer".to_owned());
        }
        head.extend_from_slice(&part[..size]);
    }
}

/// The status code, when its whole line is there, and where the line ends.
fn status(head: &[u8]) -> Result<Option<(u16, usize)>, String> {
    let Some(end) = find(head, b"\r\n") else {
        let good = head.len() < 5 || head.starts_with(b"HTTP/");
        return if good {
            Ok(None)
        } else {
            Err("the answer is not HTTP".to_owned())
        };
    };
    let line = String::from_utf8_lossy(&head[..end]);
    let mut words = line.split(' ');
    let http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    let code = words
        .next()
        .filter(|word| word.len() == 3)
        .and_then(|word| word.parse::<u16>().ok())
        .filter(|code| *code >= 100);
    match code {
        Some(code) if http => Ok(Some((code, end))),
        _ => Err("the answer is not HTTP/1".to_owned()),
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests;
