//! An ordered map of keys whose copy is free and whose change after a copy is cheap: sorted chunks behind `Arc`s, copied
//! when written. The reflector writes it; every reader holds copies. It never copies a value.

use std::sync::Arc;

use crate::store::{KeyValue, Prefix};

/// Keys per chunk before it is split; half of it after. Around the square root of the largest maps (100,000 keys).
const CHUNK: usize = 256;

type Chunk = Arc<Vec<Arc<KeyValue>>>;

/// Keys in order, each with its value and revisions.
#[derive(Clone, Debug, Default)]
pub struct KeyMap {
    /// Never an empty chunk; keys ascend within and across chunks.
    chunks: Arc<Vec<Chunk>>,
    len: usize,
}

impl KeyMap {
    /// A map of these; of two with one key the later stays.
    pub fn from_unsorted(mut kvs: Vec<Arc<KeyValue>>) -> Self {
        kvs.sort_by(|a, b| a.key.cmp(&b.key).then(b.mod_revision.cmp(&a.mod_revision)));
        kvs.dedup_by(|later, first| later.key == first.key);
        let len = kvs.len();
        let mut chunks = Vec::with_capacity(len.div_ceil(CHUNK / 2));
        let mut kvs = kvs.into_iter().peekable();
        while kvs.peek().is_some() {
            chunks.push(Arc::new(kvs.by_ref().take(CHUNK / 2).collect::<Vec<_>>()));
        }
        Self {
            chunks: Arc::new(chunks),
            len,
        }
    }

    /// How many keys.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One key. The `Arc` stays the same one until the key changes, so that readers can keep what they decoded.
    pub fn get(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        let chunk = &self.chunks.get(self.chunk_for(key))?;
        let at = chunk.binary_search_by(|kv| kv.key.as_slice().cmp(key)).ok()?;
        chunk.get(at)
    }

    /// All keys in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The keys under a prefix, in order.
    pub fn under<'a>(&'a self, prefix: &'a Prefix) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        let start = prefix.as_str().as_bytes();
        let first = self.chunk_for(start);
        let skip = self
            .chunks
            .get(first)
            .map_or(0, |c| c.partition_point(|kv| kv.key.as_slice() < start));
        let chunks = self.chunks.get(first..).unwrap_or_default();
        chunks
            .iter()
            .flat_map(|chunk| chunk.iter())
            .skip(skip)
            .take_while(|kv| prefix.covers(&kv.key))
    }

    /// Puts a key in, over what it had.
    pub(crate) fn insert(&mut self, kv: Arc<KeyValue>) {
        let at = self.chunk_for(&kv.key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(at) else {
            chunks.push(Arc::new(vec![kv]));
            self.len += 1;
            return;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|old| old.key.cmp(&kv.key)) {
            Ok(same) => chunk[same] = kv,
            Err(gap) => {
                chunk.insert(gap, kv);
                self.len += 1;
                if chunk.len() > CHUNK {
                    let upper = chunk.split_off(CHUNK / 2);
                    chunks.insert(at + 1, Arc::new(upper));
                }
            }
        }
    }

    /// Takes a key out.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Arc<KeyValue>> {
        let at = self.chunk_for(key);
        let found = self
            .chunks
            .get(at)?
            .binary_search_by(|kv| kv.key.as_slice().cmp(key))
            .ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[at]);
        let removed = chunk.remove(found);
        if chunk.is_empty() {
            chunks.remove(at);
        }
        self.len -= 1;
        Some(removed)
    }

    /// The chunk in which a key is, or would be.
    fn chunk_for(&self, key: &[u8]) -> usize {
        let after = self
            .chunks
            .partition_point(|chunk| chunk.first().is_some_and(|kv| kv.key.as_slice() <= key));
        after.saturating_sub(1)
    }
}

impl PartialEq for KeyMap {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn kv(key: &str, revision: i64) -> Arc<KeyValue> {
        Arc::new(KeyValue {
            key: key.as_bytes().to_vec(),
            value: bytes::Bytes::new(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        })
    }

    proptest! {
        #[test]
        fn it_equals_a_plain_ordered_map(ops in prop::collection::vec((any::<bool>(), 0_u32..900), 0..3000)) {
            let mut map = KeyMap::default();
            let mut plain = BTreeMap::new();
            for (revision, (put, n)) in ops.into_iter().enumerate() {
                let key = format!("/reeve/{}/{n:03}", if n % 2 == 0 { "a" } else { "b" });
                if put {
                    let kv = kv(&key, revision as i64);
                    map.insert(kv.clone());
                    plain.insert(kv.key.clone(), kv);
                } else {
                    prop_assert_eq!(map.remove(key.as_bytes()), plain.remove(key.as_bytes()));
                }
                prop_assert_eq!(map.len(), plain.len());
            }
            prop_assert!(map.iter().eq(plain.values()));
            prop_assert!(map.chunks.iter().all(|c| !c.is_empty() && c.len() <= CHUNK));
            for prefix in ["/reeve/a/", "/reeve/b/", "/reeve/", "/", "/reeve/aa/", "/zzz/"] {
                let prefix = Prefix::new(prefix).expect("ends in a slash");
                let expected = plain.values().filter(|kv| prefix.covers(&kv.key));
                prop_assert!(map.under(&prefix).eq(expected));
            }
            for (key, kv) in &plain {
                prop_assert_eq!(map.get(key), Some(kv));
            }
            prop_assert_eq!(KeyMap::from_unsorted(plain.into_values().rev().collect()), map);
        }
    }

    #[test]
    fn a_copy_does_not_see_later_changes() {
        let mut map = KeyMap::default();
        for n in 0..1000 {
            map.insert(kv(&format!("{n:04}"), n));
        }
        let copy = map.clone();
        map.remove(b"0500");
        map.insert(kv("9999", 1));
        assert_eq!((copy.len(), map.len()), (1000, 1000));
        assert!(copy.get(b"0500").is_some() && copy.get(b"9999").is_none());
    }
}
