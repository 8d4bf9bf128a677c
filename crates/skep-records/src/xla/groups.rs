//! Buffers that several values have in turn, while they are found.

use skep_planner::{Buffer, UsageRecords};

use crate::{MAX_BUFFERS, error::RecordsError};

/// A buffer and its live range, half-open.
#[derive(Clone, Debug)]
pub(super) struct ValueGroup {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Buffers in the order in which they were found.
#[derive(Default)]
pub(super) struct ValueGroups(Vec<ValueGroup>);

impl ValueGroups {
    /// Adds a buffer, and gives its number.
    pub(super) fn push(&mut self, group: ValueGroup) -> Result<usize, RecordsError> {
        if self.0.len() == MAX_BUFFERS {
            return Err(RecordsError::TooMany { limit: MAX_BUFFERS });
        }
        self.0.push(group);
        Ok(self.0.len() - 1)
    }

    /// A value of this size shares the buffer.
    pub(super) fn grow(&mut self, group: usize, size: u64) {
        self.0[group].size = self.0[group].size.max(size);
    }

    /// A value of the buffer is not live any more from this step on.
    pub(super) fn end(&mut self, group: usize, step: u64) {
        self.0[group].end = self.0[group].end.max(step);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn into_groups(self) -> impl Iterator<Item = ValueGroup> {
        self.0.into_iter()
    }

    pub(super) fn records(self) -> Result<UsageRecords, RecordsError> {
        let named = self.0.into_iter();
        let named = named.map(
            |ValueGroup {
                 name,
                 size,
                 start,
                 end,
             }| (name, Buffer::new(size, start, end)),
        );
        Ok(UsageRecords::new(named.collect())?)
    }
}
