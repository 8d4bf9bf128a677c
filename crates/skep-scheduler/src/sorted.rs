//! A sorted sequence that is mostly taken from its front and added to at its back, and can do both anywhere.
//!
//! ```text
//! chunks:  [ 1 4 5 9 ] [ 12 13 ] [ 20 ... ]      each sorted, at most CHUNK keys; all keys ascend from left to right
//! ```
//!
//! Adding at the back and taking from the front touch one chunk. Anything else is two bisections and a move of at most
//! a chunk's keys, whatever the length. Emptied chunks are kept for the next ones, so that a sequence whose length
//! stays bounded stops allocating.

use std::collections::VecDeque;

/// Keys in a chunk: small enough to be moved within a fraction of a microsecond, large enough for few chunks.
const CHUNK: usize = 128;

/// A sorted sequence of distinct keys.
#[derive(Debug)]
pub(crate) struct Sorted<K> {
    /// None is empty.
    chunks: VecDeque<VecDeque<K>>,
    /// Emptied ones.
    spare: Vec<VecDeque<K>>,
    len: usize,
}

impl<K: Ord + Copy> Sorted<K> {
    pub(crate) fn new() -> Self {
        Self {
            chunks: VecDeque::new(),
            spare: Vec::new(),
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The least key.
    pub(crate) fn first(&self) -> Option<K> {
        self.chunks.front()?.front().copied()
    }

    /// The least key above this one, which need not be there itself.
    pub(crate) fn after(&self, key: K) -> Option<K> {
        let chunk = self.chunks.get(self.position(|last| last <= key))?;
        let index = chunk.partition_point(|other| *other <= key);
        chunk.get(index).copied()
    }

    /// The first chunk whose greatest key is not `below`. That is most often the first of all, and the others lie
    /// scattered in memory.
    fn position(&self, below: impl Fn(K) -> bool) -> usize {
        if self.chunks.front().is_none_or(|chunk| !below(last(chunk))) {
            return 0;
        }
        self.chunks.partition_point(|chunk| below(last(chunk)))
    }

    /// All keys, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = K> + '_ {
        self.chunks.iter().flatten().copied()
    }

    pub(crate) fn insert(&mut self, key: K) {
        self.len += 1;
        let behind = self.chunks.back().is_some_and(|chunk| last(chunk) < key);
        let at = if behind {
            self.chunks.len() - 1
        } else {
            self.position(|last| last < key)
        };
        let Some(chunk) = self.chunks.get_mut(at) else {
            let mut chunk = self.spare.pop().unwrap_or_default();
            chunk.push_back(key);
            self.chunks.push_back(chunk);
            return;
        };
        if chunk.len() < CHUNK {
            let index = chunk.partition_point(|other| *other < key);
            debug_assert!(chunk.get(index) != Some(&key), "keys are distinct");
            chunk.insert(index, key);
            return;
        }
        let mut upper = self.spare.pop().unwrap_or_default();
        if last(chunk) < key {
            // Keys that come in order fill their chunks.
            upper.push_back(key);
        } else {
            upper.extend(chunk.drain(CHUNK / 2..));
            let half = if last(chunk) < key { &mut upper } else { chunk };
            let index = half.partition_point(|other| *other < key);
            half.insert(index, key);
        }
        self.chunks.insert(at + 1, upper);
    }

    /// Takes a key out; whether it was there.
    pub(crate) fn remove(&mut self, key: K) -> bool {
        let at = self.position(|last| last < key);
        let Some(chunk) = self.chunks.get_mut(at) else {
            return false;
        };
        let Ok(index) = chunk.binary_search(&key) else {
            return false;
        };
        chunk.remove(index);
        self.len -= 1;
        if chunk.is_empty() {
            self.spare.extend(self.chunks.remove(at));
        }
        true
    }
}

/// A chunk's greatest key.
fn last<K: Copy>(chunk: &VecDeque<K>) -> K {
    *chunk.back().expect("no chunk is empty")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is done, it does as a `BTreeSet`.
        #[test]
        fn is_a_sorted_set(ops in prop::collection::vec((0u8..4, 0u32..2000), 0..3000)) {
            let (mut sorted, mut set) = (Sorted::new(), BTreeSet::new());
            for (op, key) in ops {
                match op {
                    0 | 1 => if set.insert(key) { sorted.insert(key) },
                    2 => prop_assert_eq!(sorted.remove(key), set.remove(&key)),
                    _ => prop_assert_eq!(sorted.after(key), set.range(key + 1..).next().copied()),
                }
                prop_assert_eq!(sorted.first(), set.first().copied());
                prop_assert_eq!(sorted.len(), set.len());
            }
            prop_assert!(sorted.iter().eq(set.iter().copied()));
        }

        /// Longer ones, in ascending and descending order.
        #[test]
        fn chunks_split_and_go(length in 0u32..1000, descending: bool) {
            let mut sorted = Sorted::new();
            for index in 0..length {
                sorted.insert(if descending { length - index } else { index });
            }
            let keys: Vec<u32> = sorted.iter().collect();
            prop_assert!(keys.is_sorted() && keys.len() == length as usize);
            for key in keys {
                prop_assert_eq!(sorted.first(), Some(key));
                prop_assert!(sorted.remove(key));
            }
            prop_assert_eq!(sorted.len(), 0);
        }
    }
}
