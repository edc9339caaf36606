//! Waiting on conditions. A wait that fails says what it last saw.

use std::time::{Duration, Instant};

/// Asks until the answer is Ok, at most `seconds`; panics with the last answer otherwise.
pub fn eventually<T>(what: &str, seconds: u64, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match ask() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= end => panic!("{what}: not within {seconds} s; last seen: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Asks again and again for so long; panics at the first Err. For what must not happen.
pub fn holds_for(what: &str, time: Duration, mut ask: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if let Err(seen) = ask() {
            panic!("{what}: {seen}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
