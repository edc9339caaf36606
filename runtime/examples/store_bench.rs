//! Puts a second of the embedded store, in process and over loopback, beside a real etcd on the
//! same machine, and tells how soon 1,000 watchers hear of a put. `cargo run --release -p runtime --example store_bench [seconds] [bytes]`; needs
//! `etcd` in the path for the comparison, and leaves it out otherwise.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcd_client::Client;
use runtime::embedded::{Embedded, OpenOptions};

type Failure = Box<dyn std::error::Error>;

/// Writes with `writers` at once for `time`: puts a second, and the 50th and 99th percentile.
async fn measure(client: &Client, writers: usize, time: Duration, value: &[u8]) -> String {
    let puts = Arc::new(AtomicU64::new(0));
    let end = Instant::now() + time;
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let (mut client, puts, value) = (client.clone(), Arc::clone(&puts), value.to_vec());
            tokio::spawn(async move {
                let mut took = Vec::new();
                for i in 0_u64.. {
                    let begin = Instant::now();
                    if begin >= end {
                        break;
                    }
                    let key = format!("bench/{writer}/{}", i % 100);
                    client.put(key, value.clone(), None).await.map_err(|e| e.to_string())?;
                    took.push(begin.elapsed());
                    puts.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, String>(took)
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        match task.await {
            Ok(Ok(some)) => took.extend(some),
            Ok(Err(error)) => return error,
            Err(error) => return error.to_string(),
        }
    }
    took.sort_unstable();
    let rank = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
    let rate = puts.load(Ordering::Relaxed) as f64 / time.as_secs_f64();
    format!("{rate:>8.0} puts/s   p50 {:>9.2?}   p99 {:>9.2?}", rank(50), rank(99))
}

async fn line(name: &str, client: &Client, time: Duration, value: &[u8]) {
    for writers in [1, 64] {
        let result = measure(client, writers, time, value).await;
        println!("{name:<22} {writers:>3} writers {result}");
    }
}

/// Each watcher on a stream and a key of its own, as agents are: from the put's answer to the watcher's hearing of it.
async fn fan_out(store: &Embedded, watchers: usize, value: &[u8]) -> Result<(), Failure> {
    let client = store.client();
    let before = resident();
    for n in 0..5_000 {
        client.clone().put(format!("fan/{n}"), value.to_vec(), None).await?;
    }
    let with_keys = resident();
    let (tell, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..watchers {
        let mut stream = client.watch_client().watch(format!("fan/{n}"), None).await?;
        stream.message().await?;
        let tell = tell.clone();
        tasks.spawn(async move {
            while let Ok(Some(_)) = stream.message().await {
                // At the end of the run nobody listens.
                let _ = tell.send((n, Instant::now()));
            }
        });
    }
    let with_watchers = resident();
    let mut took = Vec::new();
    for n in 0..2_000 {
        let which = (n * 7919) % watchers;
        client.clone().put(format!("fan/{which}"), value.to_vec(), None).await?;
        let answered = Instant::now();
        let (who, at) = heard.recv().await.ok_or("no watcher is left")?;
        assert_eq!(who, which, "a watcher of another key");
        took.push(at.saturating_duration_since(answered));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    took.sort_unstable();
    let rank = |percent: usize| took[took.len() * percent / 100];
    println!(
        "{watchers} watchers: answered -> heard p50 {:.2?}   p99 {:.2?}   most {:.2?}",
        rank(50),
        rank(99),
        took[took.len() - 1]
    );
    println!(
        "resident: {before} kB, with 5,000 keys of {} bytes {with_keys} kB, with {watchers} watchers {with_watchers} kB, after 2,000 puts {} kB",
        value.len(),
        resident()
    );
    Ok(())
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let time = Duration::from_secs(args.next().map_or(Ok(5), |a| a.parse())?);
    let value = vec![b'v'; args.next().map_or(Ok(256), |a| a.parse())?];
    let dir = std::env::temp_dir().join(format!("store-bench-{}", std::process::id()));

    let store = Embedded::open(OpenOptions::new(dir.join("fan")))?;
    fan_out(&store, 1_000, &vec![b'v'; 6_000]).await?;
    drop(store);
    let store = Embedded::open(OpenOptions::new(dir.join("embedded")))?;
    line("embedded, in process", &store.client(), time, &value).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let store = Arc::new(store);
    let serving = Arc::clone(&store);
    let server = tokio::spawn(async move {
        let until = async {
            let _ = stopped.await;
        };
        serving.serve(listener, until).await
    });
    line(
        "embedded, loopback",
        &Client::connect([&url], None).await?,
        time,
        &value,
    )
    .await;
    let _ = stop.send(());
    server.await??;
    drop(store);

    let port = || TcpListener::bind("127.0.0.1:0").and_then(|s| s.local_addr());
    let (client, peer) = (format!("http://{}", port()?), format!("http://{}", port()?));
    let etcd = Command::new("etcd")
        .args(["--name", "bench", "--initial-cluster", &format!("bench={peer}")])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match etcd {
        Ok(mut etcd) => {
            let deadline = Instant::now() + Duration::from_secs(20);
            let mut ready = Client::connect([&client], None).await?;
            while ready.get("x", None).await.is_err() && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let client = Client::connect([&client], None).await?;
            line("etcd, loopback", &client, time, &value).await;
            etcd.kill()?;
            etcd.wait()?;
        }
        Err(error) => println!("no etcd to compare with: {error}"),
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
