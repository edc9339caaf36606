use super::*;

const OLD: Fingerprint = Fingerprint::from_bytes([1; 32]);
const NEW: Fingerprint = Fingerprint::from_bytes([2; 32]);

fn set(number: u64, next: Option<Fingerprint>, present: Fingerprint, former: &[Fingerprint]) -> Authorities {
    Authorities {
        number,
        next,
        present,
        former: former.to_vec(),
    }
}

fn begun() -> Vec<Authorities> {
    vec![set(1, None, OLD, &[]), set(2, Some(NEW), OLD, &[])]
}

struct Seed {
    standing: Standing,
    /// The set that its store's member was started with.
    member: u64,
}

struct Node {
    believes: u64,
    issuer: Fingerprint,
    /// A seed has heard that it uses it.
    told: bool,
    away: bool,
}

/// A cluster in which one thing happens after the other, in an order that a number decides.
struct World {
    store: Vec<Authorities>,
    seeds: Vec<Seed>,
    nodes: Vec<Node>,
    random: u64,
}

impl World {
    fn new(seeds: usize, nodes: usize, random: u64) -> Self {
        let seed = |index| {
            let holds = if index == 0 { vec![OLD, NEW] } else { vec![OLD] };
            let standing = Standing {
                // The one on which it was announced has the key.
                believes: if index == 0 { 2 } else { 1 },
                anchored: 1,
                holds: holds.into_iter().collect(),
                shows: Some(OLD),
            };
            Seed { standing, member: 1 }
        };
        let node = |index| Node {
            believes: 1,
            issuer: OLD,
            told: false,
            away: index == 0,
        };
        Self {
            store: begun(),
            seeds: (0..seeds).map(seed).collect(),
            nodes: (0..nodes).map(node).collect(),
            random: random.wrapping_mul(2_654_435_769).wrapping_add(1),
        }
    }

    fn draw(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % below as u64).unwrap()
    }

    fn at(&self, number: u64) -> &Authorities {
        &self.store[usize::try_from(number).unwrap() - 1]
    }

    fn awaited(&self) -> BTreeSet<String> {
        let told = |node: &Node| node.told && node.issuer == NEW;
        let waiting = self.nodes.iter().enumerate().filter(|(_, node)| !told(node));
        waiting.map(|(index, _)| format!("node/n{index}")).collect()
    }

    /// One seed looks and does one thing; a silent one is the other's excuse.
    fn act(&mut self, me: usize, silent: Option<usize>) -> Next {
        let authorities = self.at(self.seeds[me].standing.believes).clone();
        let host = |index: usize| format!("10.0.0.{}", index + 1).parse::<Host>().unwrap();
        let others = self.seeds.iter().enumerate().filter(|(index, _)| *index != me);
        let others = others
            .map(|(index, seed)| {
                let said = if silent == Some(index) {
                    Err("silent".to_owned())
                } else {
                    Ok(seed.standing.clone())
                };
                (host(index), said)
            })
            .collect();
        let awaited = self.awaited();
        let step = next(&Facts {
            authorities: &authorities,
            own: &self.seeds[me].standing,
            others: &others,
            awaited: &awaited,
        });
        let number = authorities.number;
        let mine = &mut self.seeds[me];
        match step.clone() {
            Next::Rest | Next::AwaitSeeds(_) | Next::AwaitOthers(_) => {}
            Next::FetchKey(pin) => {
                let there = self
                    .seeds
                    .iter()
                    .enumerate()
                    .any(|(index, seed)| silent != Some(index) && seed.standing.holds.contains(&pin));
                if there {
                    self.seeds[me].standing.holds.insert(pin);
                }
            }
            Next::Anchor => {
                mine.member = number;
                mine.standing.anchored = number;
            }
            Next::Promote => self.publish(number, set(number + 1, None, NEW, &[OLD])),
            Next::Serve => mine.standing.shows = Some(NEW),
            Next::Forget(pin) => {
                assert_eq!(pin, OLD);
                self.publish(number, set(number + 1, None, NEW, &[]));
            }
            Next::Destroy(pins) => mine.standing.holds.retain(|pin| !pins.contains(pin)),
        }
        step
    }

    /// Whoever is first writes the next set.
    fn publish(&mut self, seen: u64, set: Authorities) {
        if self.store.len() as u64 == seen {
            self.store.push(set);
        }
    }

    fn happen(&mut self, mischief: bool) {
        let latest = self.store.len() as u64;
        let (seeds, nodes) = (self.seeds.len(), self.nodes.len());
        match self.draw(if mischief { 12 } else { 9 }) {
            0..4 => {
                let (me, silent) = (self.draw(seeds), self.draw(seeds * 2));
                self.act(me, Some(silent).filter(|silent| mischief && *silent != me));
            }
            4..6 => {
                let me = self.draw(seeds);
                self.seeds[me].standing.believes = latest;
            }
            6..9 => {
                let index = self.draw(nodes);
                let through = self.draw(seeds);
                let issuing = self.at(self.seeds[through].standing.believes).present;
                let present = self.at(latest).present;
                let node = &mut self.nodes[index];
                if node.away {
                    return;
                }
                node.believes = latest;
                if node.issuer == present {
                    node.told = true;
                } else {
                    node.issuer = issuing;
                }
            }
            9 => {
                // A seed is killed and started again: its member begins with what is on its disk.
                let me = self.draw(seeds);
                let seed = &mut self.seeds[me];
                seed.member = seed.standing.believes;
                seed.standing.anchored = seed.member;
            }
            _ => {
                let index = self.draw(nodes);
                self.nodes[index].away ^= true;
            }
        }
    }

    /// Whoever meets whoever, at this moment, believes what the other shows.
    fn check(&self, story: &str) {
        for one in &self.seeds {
            let member = self.at(one.member).all();
            let believed = self.at(one.standing.believes).all();
            for other in &self.seeds {
                let shown = other.standing.shows.unwrap();
                assert!(member.contains(&shown), "{story}: a member refuses another");
                assert!(believed.contains(&shown), "{story}: a seed refuses another");
                let issuing = self.at(other.standing.believes).present;
                assert!(
                    other.standing.holds.contains(&issuing),
                    "{story}: a seed has no key to issue with"
                );
                assert!(member.contains(&issuing), "{story}: a member refuses what is issued");
            }
            for node in &self.nodes {
                assert!(member.contains(&node.issuer), "{story}: a member refuses a node");
                assert!(believed.contains(&node.issuer), "{story}: a seed refuses a node");
                let theirs = self.at(node.believes).all();
                assert!(
                    theirs.contains(&one.standing.shows.unwrap()),
                    "{story}: a node, or one that was away, refuses a seed"
                );
            }
        }
    }

    fn is_done(&self) -> bool {
        let done = |seed: &Seed| {
            seed.standing.anchored == 4
                && seed.standing.holds == BTreeSet::from([NEW])
                && seed.standing.shows == Some(NEW)
        };
        self.seeds.iter().all(done)
    }
}

#[test]
fn whatever_happens_in_whatever_order_everybody_believes_what_everybody_shows() {
    let mut done = 0;
    for random in 0..300 {
        let seeds = [1, 3, 5][usize::try_from(random % 3).unwrap()];
        let mut world = World::new(seeds, 3, random);
        for step in 0..400 {
            world.happen(true);
            world.check(&format!("order {random}, step {step}"));
        }
        // Then all come back, and it comes to its end by itself.
        for node in &mut world.nodes {
            node.away = false;
        }
        for step in 0..3_000 {
            if world.is_done() {
                break;
            }
            world.happen(false);
            world.check(&format!("order {random}, quiet step {step}"));
        }
        assert!(world.is_done(), "order {random} comes to no end");
        for me in 0..seeds {
            world.seeds[me].standing.believes = 4;
            assert_eq!(world.act(me, None), Next::Rest);
        }
        done += 1;
    }
    assert_eq!(done, 300);
}

#[test]
fn one_that_is_away_is_waited_for_and_so_is_a_silent_seed() {
    let mut world = World::new(3, 2, 7);
    for _ in 0..2_000 {
        world.happen(false);
    }
    let promoted = set(3, None, NEW, &[OLD]);
    assert_eq!(world.store.last(), Some(&promoted));
    for me in 0..3 {
        assert_eq!(
            world.act(me, None),
            Next::AwaitOthers(BTreeSet::from(["node/n0".to_owned()]))
        );
    }
    world.nodes[0] = Node {
        believes: 3,
        issuer: NEW,
        told: true,
        away: false,
    };
    let silent = BTreeMap::from([("10.0.0.3".parse().unwrap(), "silent".to_owned())]);
    assert_eq!(world.act(0, Some(2)), Next::AwaitSeeds(silent));
    assert_eq!(world.act(0, None), Next::Serve);
}

#[test]
fn a_seed_that_lost_a_key_asks_for_it_before_all_else() {
    let standing = Standing {
        believes: 3,
        anchored: 0,
        holds: BTreeSet::from([OLD]),
        shows: Some(OLD),
    };
    let facts = Facts {
        authorities: &set(3, None, NEW, &[OLD]),
        own: &standing,
        others: &BTreeMap::new(),
        awaited: &BTreeSet::new(),
    };
    assert_eq!(next(&facts), Next::FetchKey(NEW));
}

#[test]
fn without_a_rotation_there_is_nothing_to_do() {
    let standing = Standing {
        believes: 1,
        anchored: 1,
        holds: BTreeSet::from([OLD]),
        shows: Some(OLD),
    };
    let others = BTreeMap::from([("10.0.0.2".parse().unwrap(), Err("silent".to_owned()))]);
    let facts = Facts {
        authorities: &set(1, None, OLD, &[]),
        own: &standing,
        others: &others,
        awaited: &BTreeSet::from(["node/n1".to_owned()]),
    };
    assert_eq!(next(&facts), Next::Rest);
}
