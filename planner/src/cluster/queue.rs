//! Nodes in the order in which one is chosen: by score, then by how many instances they have, then by name. `place.rs` keeps
//! one queue for each combination of spread domains. Putting a node in and taking the first out cost a few machine words:
//! nodes of equal score and count are a set of bits, and counts are few.

use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Queue {
    /// Never an empty one.
    levels: BTreeMap<(i64, u32), Level>,
}

/// The nodes of one score and count.
#[derive(Default)]
struct Level {
    words: Vec<u64>,
    /// No bit is set in the words before this one.
    first: usize,
    count: u32,
}

impl Queue {
    /// Puts a node in. It must not be in already.
    pub(super) fn put(&mut self, score: i64, count: u32, node: u32) {
        let level = self.levels.entry((score, count)).or_default();
        let word = (node / u64::BITS) as usize;
        if level.words.len() <= word {
            level.words.resize(word + 1, 0);
        }
        level.words[word] |= 1 << (node % u64::BITS);
        level.first = level.first.min(word);
        level.count += 1;
    }

    /// The first node, with its score and count as they were when it was put in.
    pub(super) fn first(&mut self) -> Option<(i64, u32, u32)> {
        let mut entry = self.levels.first_entry()?;
        let (score, count) = *entry.key();
        let level = entry.get_mut();
        let zeros = level.words[level.first..].iter().take_while(|word| **word == 0).count();
        level.first += zeros;
        let bit = level.words.get(level.first)?.trailing_zeros();
        let word = u32::try_from(level.first).ok()?;
        Some((score, count, word * u64::BITS + bit))
    }

    /// Takes the first node out.
    pub(super) fn drop_first(&mut self) {
        if let (Some((.., node)), Some(mut entry)) = (self.first(), self.levels.first_entry()) {
            let level = entry.get_mut();
            level.words[(node / u64::BITS) as usize] &= !(1 << (node % u64::BITS));
            level.count -= 1;
            if level.count == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_come_out_by_score_then_count_then_name() {
        let mut queue = Queue::default();
        let mut nodes: Vec<(i64, u32, u32)> = (0..500_u32)
            .map(|at| (i64::from(at % 3) - 1, at % 7, at.wrapping_mul(37) % 500))
            .collect();
        for &(score, count, node) in &nodes {
            queue.put(score, count, node);
        }
        nodes.sort_unstable();
        for (at, one) in nodes.iter().enumerate() {
            assert_eq!(queue.first(), Some(*one));
            queue.drop_first();
            if at == 250 {
                // Back in front of all that are left, and out again.
                queue.put(-5, 0, 7);
                assert_eq!(queue.first(), Some((-5, 0, 7)));
                queue.drop_first();
            }
        }
        assert_eq!(queue.first(), None);
        queue.drop_first();
    }
}
