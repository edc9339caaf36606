//! When a node replaces the key of its links, and what it does next: values in, one step out. The agent calls [`lasts`],
//! [`step`] and [`said`] whenever it looks at its links, with what its files hold and what `peers/<node>` says of it. It promises
//! that a node which goes by it ends with the one key that the others are told, whatever is lost or late in between, and that the
//! nodes of a cluster do not all replace theirs at once.

use schemas::names::NodeName;
use schemas::records::{ClusterId, Digest};

use super::links::Key;

const SECONDS_OF_DAY: u64 = 86_400;
/// Nodes replace their keys in the last part of a key's days: one of so many.
const PART: u64 = 4;

/// How a node's keys stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The key that counts on this node.
    pub present: Key,
    /// The one that is made to count next.
    pub next: Option<Key>,
    /// The key by which the store tells the others of this node, as it was last heard.
    pub published: Option<Key>,
    /// Whether the present one has become too old.
    pub due: bool,
}

/// What a node does about its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Stay,
    /// Make a next key and say it; links go on with the present one.
    Prepare,
    /// The next key counts.
    Switch,
}

/// The next step. A key is switched to only when the others are told of it, and a next one is made only when they know the
/// present one: so no key that they may hold to be this node's is ever thrown away, but the one before.
#[must_use]
pub fn step(standing: &Standing) -> Step {
    let Standing {
        present,
        next,
        published,
        due,
    } = standing;
    match next {
        Some(next) if *published == Some(*next) => Step::Switch,
        Some(_) => Step::Stay,
        None if *due && may_prepare(present, *published) => Step::Prepare,
        None => Step::Stay,
    }
}

/// Whether a next key may be made: the others are told of the present one.
#[must_use]
pub fn may_prepare(present: &Key, published: Option<Key>) -> bool {
    published == Some(*present)
}

/// The key that a node says of itself: the one that is to count, from when it is made.
#[must_use]
pub fn said(present: Key, next: Option<Key>) -> Key {
    next.unwrap_or(present)
}

/// How old a node's key becomes, in seconds, where keys have so many days: each node's own part of the last quarter of them.
#[must_use]
pub fn lasts(cluster: &ClusterId, node: &NodeName, days: u16) -> u64 {
    let whole = u64::from(days) * SECONDS_OF_DAY;
    let span = whole / PART;
    let digest = Digest::of(format!("reeve link key\n{cluster}\n{node}\n").as_bytes()).to_string();
    let drawn = digest.get(..8).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    // Of 32 bits: a part of the span, never all of it.
    whole - ((drawn.unwrap_or_default() * span) >> 32)
}

#[cfg(test)]
mod tests;
