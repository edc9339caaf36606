//! What happens to a cluster, and when: drawn from a seed before anything runs, so that a history can be printed, replayed
//! and made shorter.

use std::time::Duration;

use crate::dice::Dice;

/// How large a cluster is, and for how long it is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Nodes.
    pub nodes: usize,
    /// Controllers.
    pub controllers: usize,
    /// How long things happen, in seconds.
    pub seconds: u64,
    /// How many things happen.
    pub acts: usize,
}

/// One thing that happens. Numbers stand for whatever there is then, by remainder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A person writes a service: which, how many instances, which of its specs.
    Apply { service: u8, replicas: u8, variant: u8 },
    /// A person deletes it.
    Delete { service: u8 },
    /// A person deletes it and writes it again at once.
    Recreate { service: u8, replicas: u8, variant: u8 },
    /// A person writes something that is no service, under a service's key.
    Invalid { service: u8 },
    /// Garbage at a key of this class.
    Garbage { class: u8, which: u8 },
    /// A key of this class is deleted.
    Lose { class: u8, which: u8 },
    /// All assignments are deleted by their prefix.
    LoseAssignments,
    /// A person cordons a node, drains it, frees it, or says that it is off.
    Cordon { node: u8, mode: u8 },
    /// Somebody runs docker by hand: stops, removes, adds a container of his own.
    ByHand { node: u8, what: u8, which: u8 },
    /// A container ends by itself.
    Crash { node: u8, which: u8, code: u8 },
    /// kill -9 of a process, and when it is begun again.
    Kill { machine: u8, seconds: u8 },
    /// A process dies at one of its next writes: before it, after it; or the answer is lost.
    KillAtWrite { machine: u8, write: u8, when: u8 },
    /// An agent dies at one of its next effects on disk or engine.
    KillAtEffect { node: u8, effect: u8 },
    /// SIGSTOP, then SIGCONT.
    Stop { machine: u8, seconds: u8 },
    /// A clock jumps, as after a suspend.
    Jump { machine: u8, seconds: u8 },
    /// A clock runs so many percent too fast, or too slow.
    Drift { machine: u8, percent: i8 },
    /// A host goes down with all its containers.
    Reboot { node: u8, seconds: u8 },
    /// A line is silent, deaf or refused.
    Cut { machine: u8, way: u8, seconds: u8 },
    /// A line is slow.
    Slow { machine: u8, millis: u16, seconds: u8 },
    /// An engine answers nothing.
    EngineDown { node: u8, seconds: u8 },
    /// Calls of a verb hang.
    EngineHangs { node: u8, verb: u8, seconds: u8 },
    /// The next calls of a verb fail.
    EngineFails { node: u8, verb: u8, kind: u8, times: u8 },
    /// The whole store answers nobody.
    StoreDown { seconds: u8 },
    /// The store stops and goes on; leases run out meanwhile.
    StorePaused { seconds: u8 },
    /// History is forgotten.
    Compact,
    /// A lease is revoked.
    Revoke { which: u8 },
    /// All leases begin anew.
    RenewLeases,
    /// All watches break.
    BreakWatches,
    /// Watches say nothing for a while.
    HoldWatches { seconds: u8 },
    /// The store is copied.
    Backup,
    /// The store is what it was at the last copy; a person accepts that so many seconds later.
    Restore { seconds: u8 },
}

/// When it happens, and what.
pub type Step = (Duration, Act);

/// A history of a seed.
#[must_use]
pub fn history(seed: u64) -> (Shape, Vec<Step>) {
    let mut dice = Dice::new(seed);
    let nodes = match dice.below(20) {
        0 => 12,
        1..=3 => 5,
        4..=6 => 1,
        7..=11 => 2,
        _ => 3,
    };
    let shape = Shape {
        nodes,
        controllers: usize::try_from(dice.within(1..4)).unwrap_or(1),
        seconds: dice.within(60..240),
        acts: usize::try_from(dice.within(6..28)).unwrap_or(8),
    };
    let mut steps: Vec<Step> = (0..shape.acts)
        .map(|_| {
            let at = Duration::from_millis(dice.below(shape.seconds * 1_000));
            (at, act(&mut dice))
        })
        .collect();
    // Something to run is there from the beginning.
    for service in 0..3 {
        let act = Act::Apply {
            service,
            replicas: byte(&mut dice),
            variant: byte(&mut dice),
        };
        steps.push((Duration::ZERO, act));
    }
    steps.sort_by_key(|(at, _)| *at);
    (shape, steps)
}

fn byte(dice: &mut Dice) -> u8 {
    u8::try_from(dice.below(256)).unwrap_or(0)
}

fn seconds(dice: &mut Dice) -> u8 {
    // Mostly short, now and then past every timer.
    let most = if dice.one_in(4) { 120 } else { 25 };
    u8::try_from(dice.within(1..most)).unwrap_or(1)
}

fn act(dice: &mut Dice) -> Act {
    let (a, b, c, d) = (byte(dice), byte(dice), byte(dice), byte(dice));
    match dice.below(44) {
        0..=4 => Act::Apply {
            service: a,
            replicas: b,
            variant: c,
        },
        5 | 6 => Act::Delete { service: a },
        7 => Act::Recreate {
            service: a,
            replicas: b,
            variant: c,
        },
        8 => Act::Invalid { service: a },
        9 | 10 => Act::Garbage { class: a, which: b },
        11 | 12 => Act::Lose { class: a, which: b },
        13 => Act::LoseAssignments,
        14 | 15 => Act::Cordon { node: a, mode: b },
        16 | 17 => Act::ByHand {
            node: a,
            what: b,
            which: c,
        },
        18 => Act::Crash {
            node: a,
            which: b,
            code: c,
        },
        19 | 20 => Act::Kill {
            machine: a,
            seconds: seconds(dice),
        },
        21..=23 => Act::KillAtWrite {
            machine: a,
            write: b,
            when: c,
        },
        24 | 25 => Act::KillAtEffect { node: a, effect: b },
        26 => Act::Stop {
            machine: a,
            seconds: seconds(dice),
        },
        27 => Act::Jump {
            machine: a,
            seconds: seconds(dice),
        },
        28 => Act::Drift {
            machine: a,
            percent: i8::try_from(dice.below(10)).unwrap_or(0) - 5,
        },
        29 => Act::Reboot {
            node: a,
            seconds: seconds(dice),
        },
        30 | 31 => Act::Cut {
            machine: a,
            way: b,
            seconds: seconds(dice),
        },
        32 => Act::Slow {
            machine: a,
            millis: u16::try_from(dice.below(3_000)).unwrap_or(0),
            seconds: seconds(dice),
        },
        33 => Act::EngineDown {
            node: a,
            seconds: seconds(dice),
        },
        34 => Act::EngineHangs {
            node: a,
            verb: b,
            seconds: seconds(dice),
        },
        35 => Act::EngineFails {
            node: a,
            verb: b,
            kind: c,
            times: d,
        },
        36 => Act::StoreDown { seconds: seconds(dice) },
        37 => Act::StorePaused { seconds: seconds(dice) },
        38 => Act::Compact,
        39 => Act::Revoke { which: a },
        40 => Act::BreakWatches,
        41 => Act::HoldWatches { seconds: seconds(dice) },
        42 => Act::Backup,
        _ => Act::Restore { seconds: seconds(dice) },
    }
}
