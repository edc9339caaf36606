//! HTTP load on several targets at once: every request is a connection of its own, and every answer is kept with its time,
//! so that a test can say which target failed and when.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// What became of one request. Times are this machine's clock, in nanoseconds since 1970, as engines give for events.
#[derive(Clone, Debug)]
pub struct Served {
    pub begin: u128,
    pub result: Result<(), String>,
}

/// Load under way. Dropping it ends it.
pub struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Vec<Served>>>,
}

/// Now, as [`Served`] counts.
#[must_use]
pub fn now() -> u128 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}

impl Load {
    /// Asks each target for `/` again and again, about fifty times a second, until [`Load::stop`].
    #[must_use]
    pub fn start(targets: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let workers = targets.iter().map(|target| {
            let (target, stop) = (*target, Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut all = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let begin = now();
                    let result = ask(target).map_err(|error| error.to_string());
                    all.push(Served { begin, result });
                    std::thread::sleep(Duration::from_millis(15));
                }
                all
            })
        });
        let workers = workers.collect();
        Self { stop, workers }
    }

    /// Ends it; what each target answered, in the targets' order.
    #[must_use]
    pub fn stop(mut self) -> Vec<Vec<Served>> {
        self.stop.store(true, Ordering::Relaxed);
        let workers = self.workers.drain(..);
        workers
            .map(|worker| worker.join().expect("a worker does not panic"))
            .collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn ask(target: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.contains(" 200 OK") && answer.ends_with("Hello from Reeve.\n") {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("{} bytes: {answer:.60}", answer.len())))
    }
}
