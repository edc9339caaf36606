//! What a seed does next, from what is on its disk and what the other seeds say: a pure function. The rule behind it: **a new
//! store is begun only while every seed of the list answers and none has ever been part of one.** So whatever was lost,
//! reinstalled or cut off, there is never a second cluster: a seed that comes back with an empty disk either meets one that
//! has the store, and takes its old place there, or waits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::seeds::Host;

/// How far a seed is. What it answers to who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// It has no store, and has never seen one.
    Fresh,
    /// It has begun, and has not yet seen the store answer.
    Starting,
    /// It has a store, and has seen it answer with a quorum: the cluster is.
    Formed,
    /// It has seen the cluster, and its own store is gone.
    Lost,
}

/// What is on this seed's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Nothing.
    Empty,
    /// The word that the cluster has been seen, and no store.
    Lost,
    /// A store.
    Store,
}

/// What is on a disk, and what its seed answers others: whether a member's store is there, and whether the cluster was
/// ever seen from here.
#[must_use]
pub const fn on_disk(store: bool, seen: bool) -> (Own, Stage) {
    match (store, seen) {
        (true, true) => (Own::Store, Stage::Formed),
        (true, false) => (Own::Store, Stage::Starting),
        (false, true) => (Own::Lost, Stage::Lost),
        (false, false) => (Own::Empty, Stage::Fresh),
    }
}

/// What came of asking another seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing; why, for people.
    Silent(String),
    /// It is another cluster's, or was given another token; how that showed, for people.
    Stranger(String),
    At(Stage),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on with the store on this disk.
    Continue,
    /// Begin a new store with all seeds of the list.
    Begin,
    /// The cluster is, and this disk is empty: take the old place, through this seed.
    TakePlace { through: Host },
    /// Ask again: these are missed, each with the reason.
    Wait(BTreeMap<Host, String>),
    /// These are of another cluster: a person must look.
    Refuse(BTreeMap<Host, String>),
    /// All answer, the cluster has been, and nobody has its store: a person must bring it back, or begin anew.
    Gone,
}

/// What a seed does next. `others`: every other seed of the list.
#[must_use]
pub fn next(own: Own, others: &BTreeMap<Host, Answer>) -> Next {
    let mut silent = BTreeMap::new();
    let mut strange = BTreeMap::new();
    let mut formed = None;
    let mut seen = match own {
        Own::Store => return Next::Continue,
        Own::Lost => true,
        Own::Empty => false,
    };
    for (host, answer) in others {
        match answer {
            Answer::Silent(why) => {
                silent.insert(host.clone(), why.clone());
            }
            Answer::Stranger(why) => {
                strange.insert(host.clone(), why.clone());
            }
            Answer::At(Stage::Formed) => formed = formed.or(Some(host)),
            Answer::At(Stage::Lost) => seen = true,
            Answer::At(Stage::Fresh | Stage::Starting) => {}
        }
    }
    if !strange.is_empty() {
        return Next::Refuse(strange);
    }
    if let Some(host) = formed {
        return Next::TakePlace { through: host.clone() };
    }
    if !silent.is_empty() {
        return Next::Wait(silent);
    }
    if seen { Next::Gone } else { Next::Begin }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const OWN: [Own; 3] = [Own::Empty, Own::Lost, Own::Store];

    /// Every combination of what four other seeds may say.
    fn all() -> Vec<BTreeMap<Host, Answer>> {
        let kinds = [
            Answer::Silent("no route".to_owned()),
            Answer::Stranger("another token".to_owned()),
            Answer::At(Stage::Fresh),
            Answer::At(Stage::Starting),
            Answer::At(Stage::Formed),
            Answer::At(Stage::Lost),
        ];
        let mut lists: Vec<Vec<Answer>> = vec![Vec::new()];
        for _ in 0..4 {
            lists = lists
                .iter()
                .flat_map(|list| kinds.iter().map(|kind| [list.clone(), vec![kind.clone()]].concat()))
                .collect();
        }
        let host = |index| format!("10.0.0.{}", index + 2).parse().unwrap();
        let map = |list: Vec<Answer>| {
            list.into_iter()
                .enumerate()
                .map(|(index, answer)| (host(index), answer))
        };
        lists.into_iter().map(|list| map(list).collect()).collect()
    }

    #[test]
    fn a_new_store_is_begun_only_while_all_answer_and_none_has_seen_a_cluster() {
        let mut begun = 0;
        for (own, others) in OWN
            .iter()
            .flat_map(|own| all().into_iter().map(move |others| (*own, others)))
        {
            let clear = |answer: &Answer| matches!(answer, Answer::At(Stage::Fresh | Stage::Starting));
            let clear = own == Own::Empty && others.values().all(clear);
            assert_eq!(next(own, &others) == Next::Begin, clear, "{own:?} {others:?}");
            begun += usize::from(clear);
        }
        assert_eq!(begun, 16);
    }

    #[test]
    fn who_meets_a_cluster_takes_a_place_in_it_whoever_else_is_silent() {
        for (own, others) in [Own::Empty, Own::Lost]
            .iter()
            .flat_map(|own| all().into_iter().map(move |others| (*own, others)))
        {
            let says = |wanted: Stage| others.values().any(|answer| *answer == Answer::At(wanted));
            let strange = others.values().any(|answer| matches!(answer, Answer::Stranger(_)));
            let silent = others.values().any(|answer| matches!(answer, Answer::Silent(_)));
            match next(own, &others) {
                Next::TakePlace { through } => {
                    assert!(!strange);
                    assert_eq!(others[&through], Answer::At(Stage::Formed));
                }
                Next::Refuse(hosts) => assert!(strange && !hosts.is_empty()),
                Next::Wait(hosts) => assert!(silent && !says(Stage::Formed) && !strange && !hosts.is_empty()),
                Next::Gone => {
                    assert!(!silent && !says(Stage::Formed) && !strange);
                    assert!(own == Own::Lost || says(Stage::Lost));
                }
                Next::Begin => assert!(!says(Stage::Formed) && !strange && !silent && own == Own::Empty),
                Next::Continue => panic!("nothing is on its disk"),
            }
        }
    }

    #[test]
    fn a_seed_with_a_store_goes_on_with_it_whatever_others_say() {
        for others in all() {
            assert_eq!(next(Own::Store, &others), Next::Continue);
        }
    }

    #[test]
    fn a_seed_that_has_seen_the_cluster_is_never_fresh_again() {
        assert_eq!(on_disk(false, false), (Own::Empty, Stage::Fresh));
        assert_eq!(on_disk(true, false), (Own::Store, Stage::Starting));
        assert_eq!(on_disk(true, true), (Own::Store, Stage::Formed));
        assert_eq!(on_disk(false, true), (Own::Lost, Stage::Lost));
    }

    #[test]
    fn one_seed_alone_begins_alone_and_never_twice() {
        assert_eq!(next(Own::Empty, &BTreeMap::new()), Next::Begin);
        assert_eq!(next(Own::Lost, &BTreeMap::new()), Next::Gone);
    }
}
