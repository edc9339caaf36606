//! The machine's transitions as a table, and a random history with faults in which the cache must equal the store.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::error::{StoreError, StoreErrorKind};
use crate::reflector::{Cache, Writer};

const LIST: Action = Action::List { after_failure: true };

fn kv(key: &str, create_revision: i64, mod_revision: i64, version: i64) -> KeyValue {
    KeyValue {
        key: key.as_bytes().to_vec(),
        value: Bytes::from(mod_revision.to_string()),
        create_revision,
        mod_revision,
        version,
        lease: 0,
    }
}

fn new_kv(key: &str, revision: i64) -> KeyValue {
    kv(key, revision, revision, 1)
}

fn listing(revision: i64) -> Listing {
    Listing {
        revision,
        cluster_id: 7,
        kvs: vec![new_kv("a", 3)],
    }
}

fn lost() -> Input {
    let error = StoreError::new("watch", "/reeve/", StoreErrorKind::Unreachable);
    Input::Watch(WatchInput::Disconnected(error))
}

fn opened(revision: i64) -> Input {
    Input::Watch(WatchInput::Opened {
        cluster_id: 7,
        revision,
    })
}

fn canceled(compact_revision: i64, reason: &str) -> Input {
    Input::Watch(WatchInput::Canceled {
        compact_revision,
        reason: reason.to_owned(),
    })
}

fn no_leader() -> Input {
    canceled(0, "etcdserver: no leader")
}

fn said(revision: i64, events: Vec<WatchEvent>) -> Input {
    part(revision, events, false)
}

fn part(revision: i64, events: Vec<WatchEvent>, fragment: bool) -> Input {
    Input::Watch(WatchInput::Response {
        cluster_id: 7,
        revision,
        events,
        fragment,
    })
}

fn put(key: &str, revision: i64) -> WatchEvent {
    WatchEvent::Put(new_kv(key, revision))
}

fn resumed(from: i64) -> Action {
    Action::Watch {
        from,
        after_failure: true,
    }
}

/// A machine that has listed at revision 10 and whose watch is open.
fn watching() -> Machine {
    let mut machine = Machine::new();
    let (_, action) = machine.step(Input::Listed(listing(10)));
    assert_eq!(
        action,
        Action::Watch {
            from: 11,
            after_failure: false
        }
    );
    assert_eq!(machine.step(opened(10)), (vec![], Action::Read));
    machine
}

#[test]
fn a_list_is_told_whole_and_followed_by_a_watch_from_the_next_revision() {
    let mut machine = Machine::new();
    assert_eq!(machine.step(Input::ListFailed), (vec![], LIST));
    let (events, _) = machine.step(Input::Listed(listing(10)));
    let position = Position {
        cluster_id: 7,
        revision: 10,
    };
    let done = Event::InitDone {
        position,
        went_back: None,
    };
    assert_eq!(events, [Event::Init, Event::InitApply(new_kv("a", 3)), done]);
}

#[test]
fn each_irregularity_resumes_or_lists() {
    let foreign = || {
        Input::Watch(WatchInput::Opened {
            cluster_id: 8,
            revision: 50,
        })
    };
    let foreign_events = || {
        Input::Watch(WatchInput::Response {
            cluster_id: 8,
            revision: 50,
            events: vec![put("b", 50)],
            fragment: false,
        })
    };
    let cases: Vec<(&str, Input, Action)> = vec![
        ("disconnected", lost(), LIST),
        ("silent", Input::Silence, LIST),
        ("no leader", canceled(0, "etcdserver: no leader"), resumed(13)),
        (
            "compacted",
            canceled(20, "etcdserver: mvcc: required revision has been compacted"),
            LIST,
        ),
        ("cancelled without a word", canceled(0, ""), LIST),
        ("a gap", Input::Gap, LIST),
        ("another store", foreign(), LIST),
        ("another store's events", foreign_events(), LIST),
        ("an older store", opened(5), LIST),
        (
            "going back within a response",
            said(20, vec![put("b", 20), put("c", 19)]),
            LIST,
        ),
    ];
    for (name, input, action) in cases {
        let mut machine = watching();
        let (events, next) = machine.step(said(12, vec![put("b", 11), put("c", 12)]));
        let told = [
            Event::Apply(new_kv("b", 11)),
            Event::Apply(new_kv("c", 12)),
            Event::Synced { revision: 12 },
        ];
        assert_eq!((events.as_slice(), next), (told.as_slice(), Action::Read), "{name}");
        assert_eq!(machine.step(input), (vec![], action), "{name}");
    }
}

#[test]
fn what_was_told_before_is_not_told_again() {
    let mut machine = watching();
    assert_eq!(machine.step(said(10, vec![put("a", 3), put("z", 10)])).0, []);
    let (events, _) = machine.step(said(12, vec![put("z", 10), put("b", 12)]));
    assert_eq!(events, [Event::Apply(new_kv("b", 12)), Event::Synced { revision: 12 }]);
}

#[test]
fn a_progress_report_moves_the_place_to_resume_from() {
    let mut machine = watching();
    assert_eq!(machine.step(said(500, vec![])).0, [Event::Synced { revision: 500 }]);
    assert_eq!(machine.step(no_leader()).1, resumed(501));
}

#[test]
fn the_header_of_a_response_with_events_is_not_believed() {
    let mut machine = watching();
    let (events, _) = machine.step(said(90, vec![put("b", 12)]));
    assert_eq!(events.last(), Some(&Event::Synced { revision: 12 }));
    assert_eq!(machine.step(no_leader()).1, resumed(13));
}

#[test]
fn half_a_revision_is_read_again_when_resumed() {
    let mut machine = watching();
    let (events, _) = machine.step(part(12, vec![put("b", 11), put("c", 12)], true));
    let told = [
        Event::Apply(new_kv("b", 11)),
        Event::Synced { revision: 11 },
        Event::Apply(new_kv("c", 12)),
    ];
    assert_eq!(events, told, "no reader sees half of revision 12");
    assert_eq!(machine.step(no_leader()).1, resumed(12));
}

#[test]
fn a_watch_that_never_answers_is_given_up_for_a_list() {
    let mut machine = watching();
    assert_eq!(machine.step(no_leader()).1, resumed(11));
    assert_eq!(machine.step(opened(10)).1, Action::Read);
    assert_eq!(machine.step(no_leader()).1, resumed(11));
    assert_eq!(machine.step(no_leader()).1, LIST);
}

#[test]
fn a_member_that_lags_behind_a_fresh_list_is_waited_for() {
    let mut machine = watching();
    let _ = machine.step(no_leader());
    assert_eq!(machine.step(opened(5)).1, LIST);
    let _ = machine.step(Input::Listed(listing(10)));
    assert_eq!(machine.step(opened(5)).1, Action::Read);
}

#[test]
fn a_store_that_went_back_is_named() {
    for (cluster_id, revision) in [(7, 9), (8, 10), (8, 99)] {
        let mut machine = watching();
        let _ = machine.step(Input::Gap);
        let (events, _) = machine.step(Input::Listed(Listing {
            revision,
            cluster_id,
            kvs: vec![],
        }));
        let before = Position {
            cluster_id: 7,
            revision: 10,
        };
        let done = Event::InitDone {
            position: Position { cluster_id, revision },
            went_back: Some(before),
        };
        assert_eq!(events.last(), Some(&done));
    }
}

/// A store of plain data for random histories.
#[derive(Clone, Default)]
struct Sim {
    cluster_id: u64,
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Vec<u8>, KeyValue>,
    log: Vec<WatchEvent>,
}

/// The watch of the simulated store: where it is.
struct SimWatch {
    next: i64,
    opened: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Delete(u8),
    PutMany(u8, u8),
    Compact,
    Disconnect,
    Silence,
    Cancel(bool),
    Repeat(u8),
    Fragment,
    Save,
    Restore,
    Replace,
    FailList,
    Drop,
    Deliver(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0_u8..12).prop_map(Step::Put),
        4 => (0_u8..12).prop_map(Step::Delete),
        4 => (0_u8..12, 1_u8..5).prop_map(|(k, n)| Step::PutMany(k, n)),
        1 => Just(Step::Compact),
        2 => Just(Step::Disconnect),
        1 => Just(Step::Silence),
        1 => any::<bool>().prop_map(Step::Cancel),
        2 => (1_u8..20).prop_map(Step::Repeat),
        3 => Just(Step::Fragment),
        1 => Just(Step::Save),
        1 => Just(Step::Restore),
        1 => Just(Step::Replace),
        1 => Just(Step::FailList),
        1 => Just(Step::Drop),
        8 => (1_u8..9).prop_map(Step::Deliver),
    ];
    prop::collection::vec(step, 1..120)
}

impl Sim {
    fn put(&mut self, n: u8) {
        let key = format!("/reeve/{n}");
        let old = self.keys.get(key.as_bytes());
        let (created, version) = old.map_or((self.revision, 1), |o| (o.create_revision, o.version + 1));
        let new = kv(&key, created, self.revision, version);
        self.keys.insert(new.key.clone(), new.clone());
        self.log.push(WatchEvent::Put(new));
    }

    fn listing(&self) -> Listing {
        Listing {
            revision: self.revision,
            cluster_id: self.cluster_id,
            kvs: self.keys.values().cloned().collect(),
        }
    }

    /// The next message of a watch: up to `most` events, cut inside a revision if asked for.
    fn say(&self, watch: &mut SimWatch, most: usize, cut: bool) -> Option<WatchInput> {
        if !watch.opened {
            watch.opened = true;
            return Some(WatchInput::Opened {
                cluster_id: self.cluster_id,
                revision: self.revision,
            });
        }
        if watch.next < self.compacted {
            return Some(WatchInput::Canceled {
                compact_revision: self.compacted,
                reason: String::new(),
            });
        }
        let waiting: Vec<&WatchEvent> = self.log.iter().filter(|e| e.revision() >= watch.next).collect();
        let mut events: Vec<WatchEvent> = waiting.iter().take(most).map(|e| (*e).clone()).collect();
        let last = events.last()?.revision();
        let whole = waiting.get(events.len()).is_none_or(|e| e.revision() != last);
        if !whole && !cut {
            events = waiting
                .iter()
                .filter(|e| e.revision() <= last)
                .map(|e| (*e).clone())
                .collect();
        }
        // A cut revision is not remembered: the simulated connection breaks there, or says it again from its start.
        watch.next = if whole || !cut { last + 1 } else { last };
        Some(WatchInput::Response {
            cluster_id: self.cluster_id,
            revision: self.revision,
            events,
            fragment: cut && !whole,
        })
    }
}

struct World {
    sim: Sim,
    saved: Option<Sim>,
    machine: Machine,
    writer: Writer,
    published: Option<Cache>,
    action: Action,
    watch: Option<SimWatch>,
    fail_list: bool,
}

impl World {
    fn new() -> Self {
        Self {
            sim: Sim {
                cluster_id: 1,
                revision: 1,
                ..Sim::default()
            },
            saved: None,
            machine: Machine::new(),
            writer: Writer::new(Vec::new()),
            published: None,
            action: Machine::start(),
            watch: None,
            fail_list: false,
        }
    }

    fn feed(&mut self, input: Input) {
        let (events, mut action) = self.machine.step(input);
        for event in events {
            match self.writer.apply(event) {
                Ok(Some(cache)) => self.published = Some(cache),
                Ok(None) => {}
                Err(_) => {
                    action = self.machine.step(Input::Gap).1;
                    break;
                }
            }
        }
        self.action = action;
    }

    /// One action; whether anything could be done.
    fn act(&mut self, most: usize, cut: bool) -> bool {
        match self.action {
            Action::List { .. } => {
                self.watch = None;
                let input = if std::mem::take(&mut self.fail_list) {
                    Input::ListFailed
                } else {
                    Input::Listed(self.sim.listing())
                };
                self.feed(input);
                true
            }
            Action::Watch { from, .. } => {
                self.watch = Some(SimWatch {
                    next: from,
                    opened: false,
                });
                self.action = Action::Read;
                true
            }
            Action::Read => {
                let Some(watch) = &mut self.watch else {
                    self.feed(Input::Silence);
                    return true;
                };
                let said = self.sim.say(watch, most, cut);
                let any = said.is_some();
                if let Some(said) = said {
                    self.feed(Input::Watch(said));
                }
                any
            }
        }
    }

    /// The connection breaks; a watch about to be opened meets a store that is not there.
    fn disconnect(&mut self) {
        let opening = matches!(self.action, Action::Watch { .. });
        if self.watch.take().is_some() || opening {
            self.feed(lost());
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Put(n) => {
                self.sim.revision += 1;
                self.sim.put(n);
            }
            Step::PutMany(n, count) => {
                self.sim.revision += 1;
                (n..n + count).for_each(|n| self.sim.put(n));
            }
            Step::Delete(n) => {
                if self.sim.keys.remove(format!("/reeve/{n}").as_bytes()).is_some() {
                    self.sim.revision += 1;
                    let revision = self.sim.revision;
                    let key = format!("/reeve/{n}").into_bytes();
                    self.sim.log.push(WatchEvent::Delete { key, revision });
                }
            }
            Step::Compact => {
                self.sim.compacted = self.sim.revision;
                self.sim.log.retain(|e| e.revision() >= self.sim.compacted);
            }
            Step::Disconnect => self.disconnect(),
            Step::Silence => {
                if self.watch.is_some() && matches!(self.action, Action::Read) {
                    self.feed(Input::Silence);
                }
            }
            Step::Cancel(worded) => {
                if self.watch.take().is_some() {
                    self.feed(canceled(0, if worded { "etcdserver: no leader" } else { "" }));
                }
            }
            Step::Repeat(back) => {
                // What it told before, once more; it never jumps ahead, and never to what is compacted.
                if let Some(watch) = &mut self.watch {
                    let least = self.sim.compacted.max(1).min(watch.next);
                    watch.next = (watch.next - i64::from(back)).max(least);
                }
            }
            Step::Fragment => {
                self.act(2, true);
            }
            Step::Save => self.saved = Some(self.sim.clone()),
            // A store cannot be replaced under an open connection.
            Step::Restore => {
                if let Some(saved) = self.saved.clone() {
                    self.sim = saved;
                    self.disconnect();
                }
            }
            Step::Replace => {
                let cluster_id = self.sim.cluster_id + 1;
                self.sim = Sim {
                    cluster_id,
                    revision: 1,
                    ..Sim::default()
                };
                self.disconnect();
            }
            Step::FailList => self.fail_list = true,
            // An event is lost: only what later changes the same key can show it, so the connection breaks too.
            Step::Drop => self.disconnect(),
            Step::Deliver(most) => {
                self.act(usize::from(most), false);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn after_any_history_of_faults_the_cache_equals_the_store(steps in steps()) {
        let mut world = World::new();
        let mut states: Vec<(u64, i64, BTreeMap<Vec<u8>, KeyValue>)> = Vec::new();
        for step in steps {
            world.take(step);
            states.push((world.sim.cluster_id, world.sim.revision, world.sim.keys.clone()));
            // Readers only ever see a state that the store was in.
            if let Some(cache) = &world.published {
                let seen: BTreeMap<_, _> = cache.keys.iter().map(|kv| (kv.key.clone(), (**kv).clone())).collect();
                let was = |(id, revision, keys): &(u64, i64, BTreeMap<_, _>)| {
                    *id == cache.cluster_id && *revision == cache.revision && *keys == seen
                };
                prop_assert!(cache.revision == 1 && seen.is_empty() || states.iter().any(was));
            }
        }
        let mut turns = 0;
        while world.act(usize::MAX, false) {
            turns += 1;
            prop_assert!(turns < 100, "it never comes to rest");
        }
        let cache = world.published.expect("a cache was published");
        prop_assert!(cache.keys.iter().map(|kv| &**kv).eq(world.sim.keys.values()));
        prop_assert_eq!(cache.cluster_id, world.sim.cluster_id);
        prop_assert_eq!(cache.revision, world.sim.revision);
    }
}
