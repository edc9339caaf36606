//! The closed loop: the real `cluster::plan` and `cluster::verdicts` joined with the real `node::plan` over a store and
//! engines in memory, under random histories: either side killed between any two of its steps, events missed, older
//! pictures and lists, reports and records lost, hands on containers, images good and bad, people who change their minds.
//! The laws are checked after each step; when the faults stop, all must settle, rest, and be as desired.
//! `REEVE_CASES` multiplies the cases, `REEVE_TRACE=1` prints what happens, `REEVE_BYTES` runs one history
//! more, `REEVE_LAW` says for which law.

#![allow(clippy::wildcard_enum_match_arm)] // What a test does not name is not what it looks for.

mod host;
mod leader;
mod world;

use proptest::prelude::*;
use proptest::test_runner::Config;
use world::{SEEDS, World, bytes_of};

fn cases(count: u32) -> Config {
    let times = std::env::var("REEVE_CASES")
        .ok()
        .and_then(|text| text.parse::<u32>().ok());
    Config {
        cases: count.saturating_mul(times.unwrap_or(1)),
        failure_persistence: None,
        ..Config::default()
    }
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 16..most)
}

/// Anything may happen; in the end all is as desired.
fn any_history(bytes: Vec<u8>) {
    let mut world = World::new(bytes, 2, 3);
    while world.script.more() {
        world.happen();
        world.check();
    }
    world.recover();
    world.settle();
    world.check_desired();
}

/// As [`any_history`], in a cluster with a network of its own.
fn networked(bytes: Vec<u8>) {
    let mut world = World::new(bytes, 2, 3);
    world.lay_network();
    while world.script.more() {
        world.happen();
        world.check();
    }
    world.recover();
    world.settle();
    world.check();
    world.check_desired();
}

/// As [`any_history`], with two exclusive services, and people who say of nodes that they are off when they are not.
fn exclusive(bytes: Vec<u8>) {
    let mut world = World::new(bytes, 2, 3);
    world.exclusive = true;
    for name in ["s0", "s1", "s2"] {
        world.apply_good(name);
    }
    world.settle();
    while world.script.more() {
        world.happen();
        world.check();
    }
    world.recover();
    world.settle();
    world.check();
    world.check_desired();
}

/// One service and its changes, on nodes that stay: the richest soil for law 16.
fn changes(bytes: Vec<u8>) {
    let mut world = World::new(bytes, 2, 1);
    world.calm = true;
    world.apply_good("s0");
    world.settle();
    while world.script.more() {
        world.happen();
        world.check();
    }
    world.recover();
    world.settle();
    world.check_desired();
}

/// Everything that can be missing is missing, and nothing that runs ends by our hand.
fn absence(bytes: Vec<u8>) {
    let mut world = World::new(bytes, 3, 3);
    for name in ["s0", "s1", "s2"] {
        world.apply_good(name);
    }
    world.settle();
    let before = world.running();
    world.nothing_may_end = true;
    while world.script.more() {
        world.lack();
        world.check();
    }
    world.recover();
    world.settle();
    assert_eq!(world.running(), before, "what ran runs on, where it ran");
}

proptest! {
    #![proptest_config(cases(600))]

    #[test]
    fn whatever_happens_the_laws_hold_and_all_ends_as_desired(bytes in bytes(420)) {
        any_history(bytes);
    }

    #[test]
    fn a_change_takes_down_one_slot_at_most_on_real_agents(bytes in bytes(420)) {
        changes(bytes);
    }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn whatever_happens_to_a_network_no_address_has_two_containers(bytes in bytes(420)) {
        networked(bytes);
    }

    #[test]
    fn whatever_happens_an_exclusive_slot_has_one_holder_and_its_tokens_rise(bytes in bytes(420)) {
        exclusive(bytes);
    }

    #[test]
    fn whatever_is_missing_nothing_ends(bytes in bytes(200)) {
        absence(bytes);
    }
}

#[test]
fn histories_that_once_broke_a_law_hold() {
    let mut seeds: Vec<(&str, Vec<u8>)> = SEEDS.iter().map(|(law, bytes)| (*law, bytes.to_vec())).collect();
    if let Ok(text) = std::env::var("REEVE_BYTES") {
        let only = std::env::var("REEVE_LAW").ok();
        let laws = ["any", "changes", "absence", "networked", "exclusive"].into_iter();
        let laws = laws.filter(|law| only.as_ref().is_none_or(|only| only == law));
        seeds.extend(laws.map(|law| (law, bytes_of(&text))));
    }
    for (law, bytes) in seeds {
        match law {
            "any" => any_history(bytes),
            "changes" => changes(bytes),
            "absence" => absence(bytes),
            "networked" => networked(bytes),
            "exclusive" => exclusive(bytes),
            other => panic!("no law is called {other}"),
        }
    }
}
