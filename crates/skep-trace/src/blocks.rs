//! Live blocks by what a trace calls them, and the events that are ready.

use std::collections::{HashMap, VecDeque};

use crate::{
    error::TraceError,
    event::{BlockId, TraceEvent},
    unmatched::Unmatched,
};

/// Finds a free's block. Takes memory for the blocks that are live.
#[derive(Default)]
pub(crate) struct LiveBlocks {
    by_key: HashMap<Box<[u8]>, BlockId>,
    /// How many blocks there were.
    count: u32,
    ready: VecDeque<TraceEvent>,
    pub(crate) unmatched: Unmatched,
}

impl LiveBlocks {
    /// A block that the trace calls `key` is allocated.
    pub(crate) fn malloc(&mut self, key: &[u8], bytes: u64, stream: u64) -> Result<(), TraceError> {
        let block = BlockId(self.count);
        self.count = self.count.checked_add(1).ok_or(TraceError::TooMany {
            what: "blocks",
            limit: u64::from(u32::MAX),
        })?;
        if let Some(earlier) = self.by_key.insert(key.into(), block) {
            self.unmatched.id_allocated_twice += 1;
            self.ready.push_back(TraceEvent::Free { block: earlier });
        }
        if bytes == 0 {
            self.unmatched.zero_bytes += 1;
        }
        self.ready.push_back(TraceEvent::Malloc {
            block,
            bytes,
            stream,
        });
        Ok(())
    }

    /// The block that the trace calls `key` is freed.
    pub(crate) fn free(&mut self, key: &[u8]) {
        match self.by_key.remove(key) {
            Some(block) => self.ready.push_back(TraceEvent::Free { block }),
            None => self.unmatched.free_of_unknown_id += 1,
        }
    }

    /// The next event of those that were found.
    pub(crate) fn next_ready(&mut self) -> Option<TraceEvent> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_numbered_as_far_as_numbers_go() {
        let mut blocks = LiveBlocks {
            count: u32::MAX - 1,
            ..LiveBlocks::default()
        };
        blocks.malloc(b"a", 1, 0).expect("the last number");
        let error = blocks.malloc(b"b", 1, 0).expect_err("no number is left");
        assert_eq!(
            error.to_string(),
            "more than 4294967295 blocks, which is the limit"
        );
    }
}
