//! Following a prefix as a typed state machine without IO: plain inputs in, cache events and the next action out. The
//! reflector drives it. It promises that every irregularity ends in a resumed watch from the right revision or in a new
//! list, never in a wrong cache; it never waits, reads a clock or draws a number.

use crate::reflector::Position;
use crate::store::{KeyValue, Listing, WatchEvent, WatchInput};

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The list that was asked for.
    Listed(Listing),
    /// The list failed.
    ListFailed,
    /// The watch that was asked for says this.
    Watch(WatchInput),
    /// The watch has said nothing for longer than a healthy one would.
    Silence,
    /// Whoever applies the events found that they do not continue what it has.
    Gap,
}

/// What to do to the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole list follows; keep the old cache until it is complete.
    Init,
    /// A key of the list.
    InitApply(KeyValue),
    /// The list is complete: swap it in.
    InitDone {
        /// Where the list was read.
        position: Position,
        /// Set when this is not a later state of the store seen before: where that one was.
        went_back: Option<Position>,
    },
    /// The key was written.
    Apply(KeyValue),
    /// The key was deleted.
    Delete {
        /// The full key.
        key: Vec<u8>,
        /// The revision that deleted it.
        revision: i64,
    },
    /// All changes up to this revision have been told: readers may see them.
    Synced {
        /// The revision.
        revision: i64,
    },
}

/// What to do next. The last action stays in force until another is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Drop the watch and list the prefix.
    List {
        /// After a failure: wait for the back-off first.
        after_failure: bool,
    },
    /// Drop the watch and open one from this revision on.
    Watch {
        /// The first revision wanted.
        from: i64,
        /// After a failure: wait for the back-off first.
        after_failure: bool,
    },
    /// Go on reading the watch.
    Read,
}

/// How often a watch is opened anew without an answer before the prefix is listed again.
const STALLS: u32 = 3;

/// The machine. It begins with [`Machine::start`].
#[derive(Debug, Default)]
pub struct Machine {
    state: State,
    /// The latest position known for certain.
    position: Option<Position>,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// A list is under way.
    #[default]
    Listing,
    /// A watch is open, or being opened.
    Watching {
        /// All changes up to this revision have been told.
        complete: i64,
        /// Watches opened since one last said anything.
        stalls: u32,
        /// No watch has answered since the list: the list itself has just shown that the store is not behind.
        fresh: bool,
    },
}

impl Machine {
    /// A machine that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The first action.
    pub const fn start() -> Action {
        Action::List { after_failure: false }
    }

    /// Takes one input.
    pub fn step(&mut self, input: Input) -> (Vec<Event>, Action) {
        match (self.state, input) {
            (State::Listing, Input::Listed(listing)) => self.listed(listing),
            (State::Listing, Input::ListFailed) => (Vec::new(), Action::List { after_failure: true }),
            // A watch that outlived the decision to list.
            (State::Listing, Input::Watch(_) | Input::Silence | Input::Gap) => {
                (Vec::new(), Action::List { after_failure: false })
            }
            (State::Watching { .. }, Input::Listed(_) | Input::ListFailed | Input::Gap | Input::Silence) => {
                self.list_again()
            }
            (
                State::Watching {
                    complete,
                    stalls,
                    fresh,
                },
                Input::Watch(said),
            ) => match said {
                WatchInput::Opened { cluster_id, revision } => {
                    // A store behind us has gone back, or its member lags: only a list can tell, and has if fresh.
                    let behind = revision < complete && !fresh;
                    if behind || !self.is_ours(cluster_id) {
                        return self.list_again();
                    }
                    self.state = State::Watching {
                        complete,
                        stalls,
                        fresh,
                    };
                    (Vec::new(), Action::Read)
                }
                WatchInput::Response {
                    cluster_id,
                    revision,
                    events,
                    fragment,
                } => {
                    if !self.is_ours(cluster_id) {
                        return self.list_again();
                    }
                    self.response(complete, revision, events, fragment)
                }
                // Compacted, or no reason at all: the list is the one sure answer to both.
                WatchInput::Canceled {
                    compact_revision,
                    reason,
                } if compact_revision != 0 || reason.is_empty() => self.list_again(),
                // The same connection, so the same store: it can go on where it was.
                WatchInput::Canceled { .. } => self.resume(),
                // What answers next may be a store restored from a backup, with new revisions past the one we know: only
                // a list cannot be deceived.
                WatchInput::Disconnected(_) => self.list_again(),
            },
        }
    }

    fn is_ours(&self, cluster_id: u64) -> bool {
        self.position.is_none_or(|known| known.cluster_id == cluster_id)
    }

    fn listed(&mut self, listing: Listing) -> (Vec<Event>, Action) {
        let Listing {
            revision,
            cluster_id,
            kvs,
        } = listing;
        let position = Position { cluster_id, revision };
        let went_back = self
            .position
            .filter(|known| known.cluster_id != cluster_id || known.revision > revision);
        self.position = Some(position);
        self.state = State::Watching {
            complete: revision,
            stalls: 0,
            fresh: true,
        };
        let mut events = Vec::with_capacity(kvs.len() + 2);
        events.push(Event::Init);
        events.extend(kvs.into_iter().map(Event::InitApply));
        events.push(Event::InitDone { position, went_back });
        let from = revision + 1;
        (
            events,
            Action::Watch {
                from,
                after_failure: false,
            },
        )
    }

    fn response(
        &mut self,
        complete: i64,
        header: i64,
        changes: Vec<WatchEvent>,
        fragment: bool,
    ) -> (Vec<Event>, Action) {
        let mut last = complete;
        let mut events = Vec::with_capacity(changes.len() + 1);
        let progress = changes.is_empty() && !fragment;
        for change in changes {
            let revision = change.revision();
            if revision <= complete {
                continue; // told before: a watch may repeat itself after a reconnect
            }
            if revision < last {
                return self.list_again();
            }
            if fragment && revision > last && last > complete {
                // What is whole may be seen; the last revision of a fragment is not, and stays behind this.
                events.push(Event::Synced { revision: last });
            }
            last = revision;
            events.push(match change {
                WatchEvent::Put(kv) => Event::Apply(kv),
                WatchEvent::Delete { key, revision } => Event::Delete { key, revision },
            });
        }
        // With events the header may be ahead of them, and a fragment's last revision is not complete.
        let now = match (progress, fragment) {
            (true, _) => header.max(complete),
            (false, false) => last,
            (false, true) => complete.max(last - 1),
        };
        if now > complete && !fragment {
            events.push(Event::Synced { revision: now });
        }
        if let Some(position) = &mut self.position {
            position.revision = now;
        }
        self.state = State::Watching {
            complete: now,
            stalls: 0,
            fresh: false,
        };
        (events, Action::Read)
    }

    fn resume(&mut self) -> (Vec<Event>, Action) {
        let State::Watching {
            complete,
            stalls,
            fresh: _,
        } = self.state
        else {
            return self.list_again();
        };
        if stalls + 1 >= STALLS {
            return self.list_again();
        }
        self.state = State::Watching {
            complete,
            stalls: stalls + 1,
            fresh: false,
        };
        let from = complete + 1;
        (
            Vec::new(),
            Action::Watch {
                from,
                after_failure: true,
            },
        )
    }

    fn list_again(&mut self) -> (Vec<Event>, Action) {
        self.state = State::Listing;
        (Vec::new(), Action::List { after_failure: true })
    }
}

#[cfg(test)]
mod tests;
