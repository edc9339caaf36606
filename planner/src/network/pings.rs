//! When a node asks which other nodes whether they are there, and what is kept of the answers. The agent sends and hears; here
//! is the schedule, which spreads over each period and never asks more than a few dozen in one, and the record of one other
//! node: the last few answers, how many of them are missing, and how long they took.

use std::collections::{BTreeSet, VecDeque};

use schemas::names::NodeName;

/// Within this each other node is asked once, where they are not too many.
pub const PERIOD_MS: u64 = 10_000;
/// The most that are asked within one period. Of more, others have their turn in the next.
pub const MOST: usize = 64;
/// Answers that are kept of each.
pub const KEPT: usize = 10;
/// An answer that took longer is none.
pub const PATIENCE_MS: u64 = 2_000;

/// Who is asked in this round, and how many milliseconds after its beginning. It begins with who follows this node, so that
/// not all nodes ask the same one at the same time.
#[must_use]
pub fn round<'a>(own: &NodeName, others: &'a BTreeSet<NodeName>, number: u64) -> Vec<(u64, &'a NodeName)> {
    let others: Vec<&NodeName> = others.iter().filter(|name| *name != own).collect();
    let all = others.len();
    if all == 0 {
        return Vec::new();
    }
    let asked = all.min(MOST);
    let next = others.partition_point(|name| *name < own);
    // Whole rounds of all of them take so many periods.
    let turn = usize::try_from(number % (all as u64)).unwrap_or(0);
    let first = if all > MOST { (next + turn * MOST) % all } else { next };
    (0..asked)
        .map(|step| {
            let at = PERIOD_MS * step as u64 / asked as u64;
            (at, others[(first + step) % all])
        })
        .collect()
}

/// What is known of the way to one other node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// In microseconds, the newest last; None of what was not answered.
    last: VecDeque<Option<u32>>,
}

impl Record {
    /// One more was asked, and answered within so many microseconds, or not at all.
    pub fn note(&mut self, took: Option<u32>) {
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(took);
    }

    /// How many are known.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.last.len()
    }

    /// How many of them were not answered.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.last.iter().filter(|one| one.is_none()).count()
    }

    /// How long half of those took that were answered, in microseconds.
    #[must_use]
    pub fn median(&self) -> Option<u32> {
        let mut took: Vec<u32> = self.last.iter().copied().flatten().collect();
        took.sort_unstable();
        took.get(took.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: usize) -> BTreeSet<NodeName> {
        (0..count)
            .map(|number| format!("n{number:04}").parse().expect("a name"))
            .collect()
    }

    fn of(own: usize, count: usize, number: u64) -> Vec<(u64, String)> {
        let own = format!("n{own:04}").parse().expect("a name");
        let all = nodes(count);
        let round = round(&own, &all, number);
        round.into_iter().map(|(at, name)| (at, name.to_string())).collect()
    }

    #[test]
    fn each_other_node_is_asked_once_in_a_period_and_each_by_another_at_a_time() {
        let named = |list: &[(u64, &str)]| -> Vec<(u64, String)> {
            list.iter().map(|(at, name)| (*at, (*name).to_owned())).collect()
        };
        assert_eq!(of(0, 3, 0), named(&[(0, "n0001"), (5_000, "n0002")]));
        assert_eq!(of(1, 3, 7), named(&[(0, "n0002"), (5_000, "n0000")]));
        assert_eq!(of(2, 3, 1), named(&[(0, "n0000"), (5_000, "n0001")]));
        assert_eq!(of(0, 1, 0), Vec::new());
        let whole = of(3, 65, 4);
        let names: BTreeSet<&String> = whole.iter().map(|(_, name)| name).collect();
        assert_eq!((whole.len(), names.len()), (64, 64));
        assert!(whole.iter().all(|(at, _)| *at < PERIOD_MS));
    }

    #[test]
    fn of_thousands_few_are_asked_at_once_and_all_in_the_end() {
        for count in [66, 128, 1_000, 5_000] {
            let mut asked = BTreeSet::new();
            let rounds = (count - 1_usize).div_ceil(MOST) as u64;
            for number in 0..rounds {
                let one = of(17, count, number);
                assert_eq!(one.len(), MOST);
                assert!(one.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{count}");
                asked.extend(one.into_iter().map(|(_, name)| name));
            }
            assert_eq!(asked.len(), count - 1, "of {count}");
        }
        assert_eq!(of(0, 100, u64::MAX).len(), MOST);
    }

    #[test]
    fn a_record_keeps_the_last_ten_and_counts_what_is_missing() {
        let mut record = Record::default();
        assert_eq!((record.asked(), record.lost(), record.median()), (0, 0, None));
        for took in [Some(900), Some(100), Some(500)] {
            record.note(took);
        }
        assert_eq!((record.asked(), record.lost(), record.median()), (3, 0, Some(500)));
        for _ in 0..9 {
            record.note(None);
        }
        assert_eq!((record.asked(), record.lost(), record.median()), (10, 9, Some(500)));
        record.note(None);
        assert_eq!((record.lost(), record.median()), (10, None));
    }
}
