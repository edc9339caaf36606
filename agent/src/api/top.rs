//! What this node and its instances use, measured over about a second. Called by `server`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use schemas::names::InstanceName;

use super::ask::{InstanceUsage, Named, Usage};
use super::directory::Directory;
use crate::engine::{ContainerRuntime, Stats};

/// Between the two samples.
const BETWEEN: Duration = Duration::from_millis(1_000);
/// Containers asked about at once.
const AT_ONCE: usize = 8;

/// Measures. A container that ends meanwhile is left out.
pub async fn measure(engine: &Arc<dyn ContainerRuntime>, directory: &Directory) -> Usage {
    let host = Host::now().await;
    let first = samples(engine, directory).await;
    tokio::time::sleep(BETWEEN).await;
    let second = samples(engine, directory).await;
    let later = Host::now().await;
    let mut instances = Vec::new();
    for (name, at, stats) in second {
        let before = first.iter().find(|(known, _, _)| *known == name);
        let cpu_millis = before.map_or(0, |(_, then, was)| {
            per_second(was.cpu_seconds, stats.cpu_seconds, at - *then)
        });
        instances.push(InstanceUsage {
            instance: Named::from(&name),
            cpu_millis,
            memory_bytes: stats.memory_bytes,
            memory_limit_bytes: stats.memory_limit_bytes,
            processes: stats.pids,
        });
    }
    Usage {
        cpu_millis: host
            .cpu_seconds
            .zip(later.cpu_seconds)
            .map(|(was, is)| per_second(was, is, later.at - host.at)),
        memory_bytes: later.memory_bytes,
        instances,
    }
}

/// Thousandths of a core.
fn per_second(was: f64, is: f64, between: Duration) -> u64 {
    let millis = (is - was).max(0.0) * 1_000.0 / between.as_secs_f64().max(0.001);
    // Casting saturates, and no host has so many cores.
    millis.round() as u64
}

async fn samples(engine: &Arc<dyn ContainerRuntime>, directory: &Directory) -> Vec<(InstanceName, Instant, Stats)> {
    let all: Vec<(InstanceName, String)> = directory
        .containers()
        .map(|(name, id)| (name.clone(), id.to_owned()))
        .collect();
    let asked = futures::stream::iter(all).map(|(name, id)| async move {
        let stats = engine.stats(&id).await.ok()?;
        // An ended container has used nothing since, and holds nothing.
        (stats.pids > 0 || stats.memory_bytes > 0).then(|| (name, Instant::now(), stats))
    });
    let mut found: Vec<_> = asked
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    found.sort_by(|(one, _, _), (other, _, _)| one.cmp(other));
    found
}

/// What the host uses, as its kernel tells.
struct Host {
    at: Instant,
    cpu_seconds: Option<f64>,
    memory_bytes: Option<u64>,
}

impl Host {
    async fn now() -> Self {
        let read = |path: &'static str| async move { tokio::fs::read_to_string(path).await.ok() };
        let (stat, memory) = (read("/proc/stat").await, read("/proc/meminfo").await);
        Self {
            at: Instant::now(),
            cpu_seconds: stat.as_deref().and_then(busy_seconds),
            memory_bytes: memory.as_deref().and_then(used_bytes),
        }
    }
}

/// Of all cores together, idle and waiting left out, from `/proc/stat`. Its unit is a hundredth of a second everywhere.
fn busy_seconds(stat: &str) -> Option<f64> {
    let mut words = stat.lines().next()?.split_whitespace();
    if words.next() != Some("cpu") {
        return None;
    }
    let ticks: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
    let idle = ticks.get(3)? + ticks.get(4).unwrap_or(&0);
    let all: u64 = ticks.iter().sum();
    Some((all - idle.min(all)) as f64 / 100.0)
}

/// From `/proc/meminfo`: what is not available.
fn used_bytes(meminfo: &str) -> Option<u64> {
    let of = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.trim_start_matches(':').split_whitespace().next()?.parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(of("MemTotal")?.saturating_sub(of("MemAvailable")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_words_are_understood_and_nonsense_is_not() {
        assert_eq!(busy_seconds("cpu  100 0 50 1000 200 0 50 0 0 0\ncpu0 1"), Some(2.0));
        assert_eq!(busy_seconds("cpu0 1 2 3"), None);
        assert_eq!(busy_seconds(""), None);
        let text = "MemTotal:       100 kB\nMemFree: 1 kB\nMemAvailable:    40 kB\n";
        assert_eq!(used_bytes(text), Some(60 * 1024));
        assert_eq!(used_bytes("MemTotal: x kB"), None);
        assert_eq!(per_second(1.0, 2.0, Duration::from_secs(2)), 500);
        assert_eq!(per_second(2.0, 1.0, Duration::ZERO), 0);
    }
}
