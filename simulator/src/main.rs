//! `simulate`: histories by the seed, each in a process of its own that begins as all others do. One seed alone is played with
//! everything that happens; many are played as fast as the machine can, and what breaks a law is made shorter and printed.
//! The tests run it, `make soak` does for hours, and so does a person with a seed in hand.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use schemas::kinds::Kind;
use simulator::history::{Shape, Step, history};
use simulator::steady;
use simulator::world::World;

const HELP: &str = "simulate SEED [--without 3,7,...] [--quiet]   one history, with what happens
simulate --from SEED --count N [--jobs N]     many; those that break a law are made shorter and printed";

/// How long a history may take before it counts as hung.
const HUNG: Duration = Duration::from_secs(240);
/// How many tries are spent on making a history shorter.
const TRIES: usize = 80;

fn main() -> ExitCode {
    let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
    let (mut seed, mut without, mut quiet) = (None, Vec::new(), false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--from" | "--count" | "--jobs" => {
                let Some(number) = arguments.next().and_then(|text| text.parse().ok()) else {
                    eprintln!("{argument} takes a number\n{HELP}");
                    return ExitCode::from(2);
                };
                numbers.insert(argument, number);
            }
            "--without" => {
                let list = arguments.next().unwrap_or_default();
                without = list.split(',').filter_map(|text| text.parse().ok()).collect();
            }
            "--quiet" => quiet = true,
            text => match text.parse() {
                Ok(number) => seed = Some(number),
                Err(_) => {
                    eprintln!("`{text}` is no seed\n{HELP}");
                    return ExitCode::from(2);
                }
            },
        }
    }
    if seed.is_some() && !quiet {
        // What the programs themselves say; their clock is not the world's.
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into());
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .without_time()
            .with_writer(std::io::stderr)
            .init();
    }
    // What every history would make ready for itself.
    for kind in Kind::ALL {
        let _ = kind.schema();
    }
    let _ = trust::seal::SealingKey::generate();
    let number = |name: &str, other| numbers.get(name).copied().unwrap_or(other);
    match seed {
        Some(seed) => one(seed, &without, !quiet),
        None if numbers.contains_key("--count") => {
            let from = number("--from", 1);
            many(from..from + number("--count", 1), number("--jobs", 1).max(1))
        }
        None => {
            eprintln!("{HELP}");
            ExitCode::from(2)
        }
    }
}

/// Plays a history without some of its steps; how many writes and virtual seconds there were, and what was broken.
fn play(seed: u64, without: &[usize], trace: bool) -> (usize, u64, Vec<String>) {
    // A thread whose hash maps have drawn nothing yet.
    let played = std::thread::scope(|scope| scope.spawn(|| play_here(seed, without, trace)).join());
    played.unwrap_or_else(|_| (0, 0, vec!["a panic".to_owned()]))
}

fn play_here(seed: u64, without: &[usize], trace: bool) -> (usize, u64, Vec<String>) {
    steady::begin(seed);
    let (shape, steps) = history(seed);
    let steps = less(&steps, without);
    let mut world = World::new(shape, seed);
    world.trace = trace;
    world.play(&shape, &steps);
    if trace {
        world.show();
    }
    let broken = std::mem::take(&mut world.laws.broken);
    (world.commits, world.age().as_secs(), broken)
}

fn less(steps: &[Step], without: &[usize]) -> Vec<Step> {
    let kept = steps.iter().enumerate().filter(|(at, _)| !without.contains(at));
    kept.map(|(_, step)| *step).collect()
}

fn one(seed: u64, without: &[usize], trace: bool) -> ExitCode {
    // In a copy, as the many are: everything is as it was for them.
    let copy = steady::apart(|| {
        let (commits, seconds, broken) = play(seed, without, trace);
        println!("seed {seed}: {commits} writes in {seconds} s");
        for line in &broken {
            println!("{line}");
        }
        u8::from(!broken.is_empty())
    });
    let ended = copy
        .ok()
        .and_then(|copy| waitpid(Some(copy), WaitOptions::empty()).ok().flatten());
    match ended.and_then(|(_, status)| status.exit_status()) {
        Some(0) => ExitCode::SUCCESS,
        Some(_) | None => ExitCode::FAILURE,
    }
}

struct Running {
    seed: u64,
    since: Instant,
}

fn many(seeds: std::ops::Range<u64>, jobs: u64) -> ExitCode {
    let Ok(dir) = tempfile::tempdir() else {
        eprintln!("no directory for results can be made");
        return ExitCode::FAILURE;
    };
    let began = Instant::now();
    let (mut left, count) = (seeds.clone(), seeds.end - seeds.start);
    let mut running: BTreeMap<i32, Running> = BTreeMap::new();
    let (mut bad, mut writes, mut virtual_seconds) = (Vec::new(), 0, 0);
    loop {
        while running.len() < usize::try_from(jobs).unwrap_or(1)
            && let Some(seed) = left.next()
        {
            match steady::apart(|| result(seed, &[], dir.path())) {
                Ok(copy) => {
                    let since = Instant::now();
                    running.insert(copy.as_raw_nonzero().get(), Running { seed, since });
                }
                Err(error) => {
                    eprintln!("no process for seed {seed}: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        if running.is_empty() {
            break;
        }
        let Some((copy, code)) = ended(&running) else { continue };
        let Some(Running { seed, since: _ }) = running.remove(&copy) else {
            continue;
        };
        let said = std::fs::read_to_string(dir.path().join(seed.to_string())).unwrap_or_default();
        let mut first = said
            .lines()
            .next()
            .unwrap_or_default()
            .split(' ')
            .filter_map(|text| text.parse::<u64>().ok());
        writes += first.next().unwrap_or(0);
        virtual_seconds += first.next().unwrap_or(0);
        if code != Some(0) {
            bad.push(seed);
            let code = code.map_or("hung or was killed".to_owned(), |code| format!("ended with {code}"));
            println!(
                "seed {seed} {code}\n{}",
                said.split_once('\n').map_or("", |(_, rest)| rest)
            );
            if bad.len() <= 3 {
                shorten(seed, dir.path());
            }
            println!("  again: simulate {seed}");
        }
    }
    println!(
        "{count} histories from seed {}: {} broke a law; {writes} writes, {} virtual hours, in {} s",
        seeds.start,
        bad.len(),
        virtual_seconds / 3_600,
        began.elapsed().as_secs(),
    );
    if bad.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// In a copy: the result in a file, and a code.
fn result(seed: u64, without: &[usize], dir: &Path) -> u8 {
    let said = dir.join(seed.to_string());
    let told = said.clone();
    std::panic::set_hook(Box::new(move |panic| {
        // Also one that the code under test would catch: no panic is good.
        let text = format!("0 0\npanic: {panic}\n");
        let _ = std::fs::write(&told, text);
        std::process::exit(3);
    }));
    let (commits, seconds, broken) = play(seed, without, false);
    let code = u8::from(!broken.is_empty());
    match std::fs::write(said, format!("{commits} {seconds}\n{}", broken.join("\n"))) {
        Ok(()) => code,
        Err(_) => 4,
    }
}

/// The next copy that ends, or is ended for having hung, and its code.
fn ended(running: &BTreeMap<i32, Running>) -> Option<(i32, Option<i32>)> {
    if let Ok(Some((copy, status))) = waitpid(None, WaitOptions::NOHANG) {
        return Some((copy.as_raw_nonzero().get(), status.exit_status()));
    }
    std::thread::sleep(Duration::from_millis(2));
    let hung = running.iter().find(|(_, one)| one.since.elapsed() > HUNG);
    if let Some(copy) = hung.and_then(|(copy, _)| Pid::from_raw(*copy)) {
        // Gone already is as good.
        let _ = kill_process(copy, Signal::KILL);
    }
    None
}

/// Leaves out what a history breaks its law without, and prints the rest.
fn shorten(seed: u64, dir: &Path) {
    let (shape, steps) = history(seed);
    let mut without: Vec<usize> = Vec::new();
    let mut tries = TRIES;
    let mut size = steps.len().div_ceil(2);
    while size > 0 && tries > 0 {
        let mut at = 0;
        while at < steps.len() && tries > 0 {
            let chunk: Vec<usize> = (at..(at + size).min(steps.len()))
                .filter(|step| !without.contains(step))
                .collect();
            at += size;
            if chunk.is_empty() {
                continue;
            }
            tries -= 1;
            let tried: Vec<usize> = without.iter().chain(&chunk).copied().collect();
            let copy = steady::apart(|| result(seed, &tried, dir));
            let ended = copy
                .ok()
                .and_then(|copy| waitpid(Some(copy), WaitOptions::empty()).ok().flatten());
            if ended.and_then(|(_, status)| status.exit_status()) != Some(0) {
                without = tried;
            }
        }
        size /= 2;
    }
    without.sort_unstable();
    print_short(seed, shape, &steps, &without);
}

fn print_short(seed: u64, shape: Shape, steps: &[Step], without: &[usize]) {
    println!("  made shorter, with {shape:?}:");
    for (at, act) in less(steps, without) {
        println!("    {:6.1} s  {act:?}", at.as_secs_f64());
    }
    let without: Vec<String> = without.iter().map(ToString::to_string).collect();
    println!("  again: simulate {seed} --without {}", without.join(","));
}
