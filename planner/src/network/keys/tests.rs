//! A node's keys through histories of crashes, lost and late news, stores that go back and files that are gone.

use proptest::prelude::*;

use super::*;

fn key(number: u8) -> Key {
    Key([number; 32])
}

fn stand(next: Option<u8>, published: Option<u8>, due: bool) -> Step {
    step(&Standing {
        present: key(1),
        next: next.map(key),
        published: published.map(key),
        due,
    })
}

#[test]
fn a_key_counts_when_the_others_are_told_of_it_and_not_before() {
    assert_eq!(stand(None, Some(1), false), Step::Stay);
    assert_eq!(stand(None, Some(1), true), Step::Prepare);
    assert_eq!(stand(Some(2), Some(1), true), Step::Stay);
    assert_eq!(stand(Some(2), None, true), Step::Stay);
    assert_eq!(stand(Some(2), Some(2), false), Step::Switch);
    // What the store says is older or newer than what the node knows.
    assert_eq!(stand(None, Some(7), true), Step::Stay);
    assert_eq!(stand(None, None, true), Step::Stay);
    assert_eq!(stand(Some(2), Some(7), true), Step::Stay);
    assert_eq!(said(key(1), None), key(1));
    assert_eq!(said(key(1), Some(key(2))), key(2));
}

#[test]
fn nodes_take_turns_in_the_last_quarter() {
    let cluster: ClusterId = "0123456789abcdef0123456789abcdef".parse().unwrap();
    let other: ClusterId = "1123456789abcdef0123456789abcdef".parse().unwrap();
    let day = SECONDS_OF_DAY;
    let mut days = std::collections::BTreeMap::<u64, u32>::new();
    for number in 0..1_000 {
        let node: NodeName = format!("n{number}").parse().unwrap();
        let lasts_here = lasts(&cluster, &node, 40);
        assert!((30 * day..=40 * day).contains(&lasts_here), "{lasts_here}");
        assert_eq!(lasts_here, lasts(&cluster, &node, 40));
        *days.entry(lasts_here / day).or_default() += 1;
        assert!(lasts(&cluster, &node, 1) >= day * 3 / 4);
        assert!(lasts(&cluster, &node, u16::MAX) <= u64::from(u16::MAX) * day);
    }
    let most = days.values().max().unwrap();
    assert!(days.len() >= 10 && *most < 150, "{days:?}");
    let node: NodeName = "n1".parse().unwrap();
    assert_ne!(lasts(&cluster, &node, 40), lasts(&other, &node, 40));
}

/// What happens to a node, to the store, and to those who hear of it.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// The agent looks: one step, which is on disk before anything is said.
    Look,
    /// Its key becomes too old, or a person asks.
    Due,
    /// What the agent says reaches the store, or is lost on the way.
    Publish,
    LosePublish,
    /// The leader tells the others what the node says.
    Lead,
    /// The node, or another, hears what the store says of it.
    Hear,
    OtherHears(usize),
    StoreGone,
    StoreBack,
    /// The agent ends, and begins with what its files hold.
    Crash,
    /// A host is put back from an old copy, or loses files.
    LoseNext,
    LoseBoth,
    LosePresent,
    /// The store is what it was some time ago.
    StoreGoesBack,
}

/// What a drawn byte stands for: among harmless things, as often as they happen.
fn happens(drawn: u8) -> Happens {
    match drawn % 64 {
        0..=13 => Happens::Look,
        14..=17 => Happens::Due,
        18..=26 => Happens::Publish,
        27..=28 => Happens::LosePublish,
        29..=37 => Happens::Lead,
        38..=46 => Happens::Hear,
        47..=55 => Happens::OtherHears(usize::from(drawn / 64) % OTHERS),
        56 => Happens::StoreGone,
        57..=59 => Happens::StoreBack,
        _ => Happens::Crash,
    }
}

/// The same, and now and then a file is lost or the store goes back.
fn harm(drawn: u8, also: u8) -> Happens {
    match also % 64 {
        0 => Happens::LoseNext,
        1 => Happens::LoseBoth,
        2 => Happens::LosePresent,
        3 => Happens::StoreGoesBack,
        _ => happens(drawn),
    }
}

const OTHERS: usize = 3;

/// Another node: the key it reaches this one by, and the one it was told of that has not answered yet.
#[derive(Clone, Copy, Debug, Default)]
struct Other {
    by: Option<Key>,
    told: Option<Key>,
}

#[derive(Debug)]
struct World {
    made: u8,
    /// Its files.
    present: Key,
    next: Option<Key>,
    /// What the agent remembers, and what it said last.
    heard: Option<Key>,
    due: bool,
    said: Option<Key>,
    /// The store: the node's facts, and `peers/<node>`.
    facts: Option<Key>,
    peers: Option<Key>,
    before: (Option<Key>, Option<Key>),
    gone: bool,
    others: [Other; OTHERS],
    switches: u32,
}

impl World {
    fn new() -> Self {
        let first = Some(key(1));
        Self {
            made: 1,
            present: key(1),
            next: None,
            heard: first,
            due: false,
            said: first,
            facts: first,
            peers: first,
            before: (first, first),
            gone: false,
            others: [Other { by: first, told: None }; OTHERS],
            switches: 0,
        }
    }

    fn draw(&mut self) -> Key {
        self.made = self.made.wrapping_add(1).max(1);
        key(self.made)
    }

    fn happen(&mut self, what: Happens) {
        match what {
            Happens::Look => {
                let standing = Standing {
                    present: self.present,
                    next: self.next,
                    published: self.heard,
                    due: self.due,
                };
                match step(&standing) {
                    Step::Stay => {}
                    Step::Prepare => {
                        self.next = Some(self.draw());
                        self.due = false;
                    }
                    Step::Switch => {
                        self.present = self.next.take().expect("there is a next one");
                        self.switches += 1;
                    }
                }
                self.said = Some(said(self.present, self.next));
            }
            Happens::Due => self.due = true,
            Happens::Publish if !self.gone => {
                if self.facts != self.said && self.said.is_some() {
                    self.before = (self.facts, self.peers);
                    self.facts = self.said;
                }
            }
            Happens::Lead if !self.gone => self.peers = self.facts,
            Happens::Hear if !self.gone => self.heard = self.peers,
            Happens::OtherHears(other) => {
                let (peers, gone) = (self.peers, self.gone);
                let other = &mut self.others[other];
                if !gone {
                    other.told = peers.filter(|told| other.by != Some(*told));
                }
            }
            Happens::LosePublish | Happens::Publish | Happens::Lead | Happens::Hear => {}
            Happens::StoreGone => self.gone = true,
            Happens::StoreBack => self.gone = false,
            // What it heard is on disk too.
            Happens::Crash => (self.said, self.due) = (None, false),
            Happens::LoseNext => self.next = None,
            Happens::LosePresent => self.present = self.draw(),
            Happens::LoseBoth => (self.present, self.next) = (self.draw(), None),
            Happens::StoreGoesBack => (self.facts, self.peers) = self.before,
        }
        // Who was told of a key goes over to it when it answers, and not before.
        for other in &mut self.others {
            if other.told == Some(self.present) {
                *other = Other {
                    by: other.told,
                    told: None,
                };
            }
        }
    }

    /// All is there again, and nobody asks for another key.
    fn settle(&mut self) {
        self.gone = false;
        self.due = false;
        for _ in 0..3 {
            for what in [
                Happens::Look,
                Happens::Publish,
                Happens::Lead,
                Happens::Hear,
                Happens::Look,
            ] {
                self.happen(what);
            }
            for other in 0..OTHERS {
                self.happen(Happens::OtherHears(other));
            }
        }
    }

    fn at_rest(&self) -> bool {
        let told = Some(self.present);
        let all = self.others.iter().all(|other| (other.by, other.told) == (told, None));
        all && self.next.is_none() && self.peers == told && self.facts == told && self.heard == told
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_node_ends_with_the_key_that_the_others_are_told(
        history in prop::collection::vec(any::<(u8, u8)>(), 0..80)
    ) {
        let mut world = World::new();
        for (drawn, also) in history {
            world.happen(harm(drawn, also));
        }
        world.settle();
        prop_assert!(world.at_rest(), "{world:?}");
    }

    #[test]
    fn while_no_file_is_lost_a_node_is_reached_or_becomes_so_by_news_alone(
        history in prop::collection::vec(any::<u8>(), 0..80)
    ) {
        let mut world = World::new();
        for what in history.into_iter().map(happens) {
            let before: Vec<bool> = world.others.iter().map(|other| other.by == Some(world.present)).collect();
            world.happen(what);
            // Who reached it reaches it still; but for the moment when it switches, and the store has told all by then.
            for (other, before) in world.others.iter().zip(before) {
                let reached = other.by == Some(world.present);
                let switched = matches!(what, Happens::Look) && world.peers == Some(world.present);
                prop_assert!(reached || !before || switched, "{what:?}: {world:?}");
            }
            // No key is published that the node does not have.
            let has = [Some(world.present), world.next];
            prop_assert!(has.contains(&world.peers), "{what:?}: {world:?}");
        }
        world.happen(Happens::Due);
        world.settle();
        prop_assert!(world.at_rest(), "{world:?}");
    }
}

#[test]
fn a_rotation_goes_through_and_another_follows_it() {
    let mut world = World::new();
    for turn in 1..=3 {
        world.happen(Happens::Due);
        for what in [
            Happens::Look,
            Happens::Publish,
            Happens::Lead,
            Happens::Hear,
            Happens::Look,
        ] {
            world.happen(what);
        }
        assert_eq!(world.switches, turn);
        world.settle();
        assert!(world.at_rest(), "{world:?}");
    }
}
