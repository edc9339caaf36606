//! Histories of the whole system by the seed: `REEVE_SIM_SEEDS` says how many (300), `REEVE_SIM_FROM` from which (1). A history that
//! breaks a law is printed with the command that plays it again, and made shorter.

use std::process::{Command, Output};

/// Over how many tests they are spread, so that all cores have some.
const PARTS: u64 = 3;

fn simulate(arguments: &[String]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulate"));
    command.args(arguments).output().expect("simulate starts")
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(usual)
}

fn part(of: u64) {
    let (from, count) = (setting("REEVE_SIM_FROM", 1), setting("REEVE_SIM_SEEDS", 300) / PARTS);
    let numbers = [("--from", from + of * count), ("--count", count)];
    let arguments: Vec<String> = numbers
        .iter()
        .flat_map(|(name, number)| [(*name).to_owned(), number.to_string()])
        .collect();
    let output = simulate(&arguments);
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn whatever_happens_to_the_whole_system_the_laws_hold_and_all_ends_as_desired_1() {
    part(0);
}

#[test]
fn whatever_happens_to_the_whole_system_the_laws_hold_and_all_ends_as_desired_2() {
    part(1);
}

#[test]
fn whatever_happens_to_the_whole_system_the_laws_hold_and_all_ends_as_desired_3() {
    part(2);
}

#[test]
fn histories_that_once_broke_a_law_no_longer_do() {
    // What each was: decision 36.
    for seed in [18, 26, 34, 39, 81, 127, 129, 183] {
        let output = simulate(&[seed.to_string(), "--quiet".to_owned()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn a_seed_is_one_history_whenever_it_is_played() {
    let played = || {
        let output = simulate(&["42".to_owned()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Events bear the time of day, and what is shown at the end the clock of the machine.
        let told = said
            .lines()
            .filter(|line| line.contains(" s  ") && !line.contains("/events/"));
        told.map(str::to_owned).collect::<Vec<_>>()
    };
    let (first, second) = (played(), played());
    assert!(first.len() > 20, "{first:?}");
    assert_eq!(first, second);
}
