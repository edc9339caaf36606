//! One machine: its clock, its engine, its disk, and the real agent or controller that runs on it. The clock is the machine's own: it
//! may run fast or slow, and goes on while the process is stopped or the machine suspended, as CLOCK_BOOTTIME does. A process
//! dies with its runtime, between any two of its steps; what it wrote and what its containers do stays.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::AgentOptions;
use agent::cut::Cut;
use agent::engine::fake::FakeEngine;
use agent::engine::mortal::{Mortal, Pace};
use controller::ControllerOptions;
use runtime::Shutdown;
use schemas::keys::Root;
use schemas::names::NodeName;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::dice::Dice;
use crate::line::Line;

/// How long whoever keeps programs running waits before it starts one again.
const AGAIN: Duration = Duration::from_secs(1);

/// What runs on a machine.
#[derive(Clone, Debug)]
pub enum Program {
    /// The agent of a node.
    Agent(NodeName),
    /// A controller of this name.
    Controller(String),
}

/// A machine.
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its engine.
    pub engine: FakeEngine,
    /// Its line to the store.
    pub line: Line,
    /// Where its process keeps what it must not forget.
    pub dir: PathBuf,
    /// Where its process dies, counted in its effects on disk and engine.
    pub cut: Cut,
    /// How fast its clock runs; 1 is right.
    pub rate: f64,
    program: Program,
    boot: u32,
    process: Option<Process>,
    /// What its clock has counted.
    clock: Duration,
    /// Stopped until then, on the right clock.
    stopped_until: Option<Duration>,
    /// Not started before then; None while it shall stay off.
    start_at: Option<Duration>,
    /// Time that its process has not seen yet.
    unseen: Duration,
    dice: Arc<Mutex<Dice>>,
    /// Why its process ended by itself, last.
    pub ended: Option<String>,
    /// How often its process was begun.
    pub starts: u32,
}

struct Process {
    runtime: Runtime,
    task: JoinHandle<String>,
}

impl Machine {
    /// A machine that is on, with an empty disk.
    #[must_use]
    pub fn new(program: Program, line: Line, dir: &Path, seed: u64) -> Self {
        let name = match &program {
            Program::Agent(node) => node.to_string(),
            Program::Controller(name) => name.clone(),
        };
        Self {
            dir: dir.join(&name),
            name,
            engine: FakeEngine::with_images(&["app:1", "app:2", "app:3"]),
            line,
            cut: Cut::never(),
            rate: 1.0,
            program,
            boot: 1,
            process: None,
            clock: Duration::ZERO,
            stopped_until: None,
            start_at: Some(Duration::ZERO),
            unseen: Duration::ZERO,
            dice: Arc::new(Mutex::new(Dice::new(seed))),
            ended: None,
            starts: 0,
        }
    }

    /// Whether its process runs, stopped or not.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Kills its process (kill -9); it begins again at that moment, or when somebody says so.
    pub fn kill(&mut self, again: Option<Duration>) {
        self.process = None;
        self.start_at = again;
        self.stopped_until = None;
        self.unseen = Duration::ZERO;
    }

    /// The machine goes down with its engine and all containers, and is on again at that moment.
    pub fn reboot(&mut self, again: Duration) {
        self.kill(Some(again));
        self.engine.power_off();
        self.boot += 1;
    }

    /// Its process does nothing until that moment (SIGSTOP), or the whole machine is suspended; its clock goes on.
    pub fn stop(&mut self, until: Duration) {
        if self.process.is_some() {
            self.stopped_until = Some(until);
        }
    }

    /// Its clock goes on by so much at once.
    pub fn jump(&mut self, time: Duration) {
        self.clock += time;
        self.unseen += time;
    }

    /// Everything about it is as it should be again, and its process is begun soon.
    pub fn heal(&mut self, now: Duration) {
        self.rate = 1.0;
        self.stopped_until = None;
        if self.process.is_none() {
            self.start_at = Some(self.start_at.map_or(now, |at| at.min(now)));
        }
    }

    fn start(&mut self) {
        self.line.revive();
        self.starts += 1;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let (clock, line) = (self.clock, self.line.clone());
        let shutdown = Shutdown::new();
        let program = match &self.program {
            Program::Agent(node) => Begin::Agent(Box::new(self.options(node)), self.engine()),
            Program::Controller(name) => Begin::Controller(name.clone()),
        };
        runtime.block_on(tokio::time::advance(clock));
        let task = match program {
            Begin::Agent(options, engine) => runtime.spawn(async move {
                match agent::run(*options, line, engine, shutdown).await {
                    Ok(()) => "it ended".to_owned(),
                    Err(error) => runtime::chain(&error),
                }
            }),
            Begin::Controller(name) => runtime.spawn(async move {
                match controller::run(ControllerOptions::new(line, Root::default(), name), shutdown).await {
                    Ok(()) => "it ended".to_owned(),
                    Err(error) => runtime::chain(&error),
                }
            }),
        };
        self.process = Some(Process { runtime, task });
    }

    fn options(&self, node: &NodeName) -> AgentOptions {
        let mut options = AgentOptions::new(node.clone(), &self.dir);
        options.policy.file = self.dir.join("policy.yaml");
        options.cut = self.cut.clone();
        options.machine = Some((format!("machine of {}", self.name), format!("boot {}", self.boot)));
        options
    }

    fn engine(&self) -> Arc<Mortal> {
        let dice = Arc::clone(&self.dice);
        let pace: Pace = Arc::new(move |verb| {
            let longest = match verb {
                "pull" => 2_000,
                "stop" => 1_500,
                "create" | "start" | "remove" => 200,
                _ => 5,
            };
            let mut dice = dice.lock().unwrap_or_else(PoisonError::into_inner);
            Duration::from_millis(dice.below(longest))
        });
        Arc::new(Mortal::new(self.engine.clone(), self.cut.clone(), &self.dir).paced(pace))
    }

    /// So much time passes; `now` is the right clock at its end.
    pub fn pass(&mut self, time: Duration, now: Duration) {
        let time = time.mul_f64(self.rate);
        self.clock += time;
        if self.process.is_none() && self.start_at.is_some_and(|at| at <= now) {
            self.start_at = None;
            self.start();
        }
        if self.stopped_until.is_some_and(|until| until <= now) {
            self.stopped_until = None;
        }
        let Some(process) = &self.process else { return };
        if self.stopped_until.is_some() {
            self.unseen += time;
            return;
        }
        let unseen = std::mem::take(&mut self.unseen);
        process.runtime.block_on(async {
            if !unseen.is_zero() {
                tokio::time::advance(unseen).await;
            }
            tokio::time::sleep(time).await;
        });
        if self.line.is_dead() || self.cut.is_dead() {
            self.cut = Cut::never();
            self.line.plan(None);
            self.kill(Some(now + AGAIN));
        } else if process.task.is_finished() {
            if let Some(process) = self.process.take() {
                self.ended = process.runtime.block_on(process.task).ok();
            }
            self.start_at = Some(now + AGAIN);
        }
    }
}

enum Begin {
    Agent(Box<AgentOptions>, Arc<Mortal>),
    Controller(String),
}
