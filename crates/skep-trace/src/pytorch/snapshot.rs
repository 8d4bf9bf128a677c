//! CUDA snapshots of PyTorch (`torch.cuda.memory._dump_snapshot`): a pickle with a list of entries for each device.
//!
//! A block lives from `alloc` to `free_completed`; between `free_requested` and that, it waits for other streams. Its
//! size is the one that was asked for. Entries of other kinds tell of segments, and of the snapshot itself. Devices
//! come one after the other.

use std::{collections::HashSet, io::Read};

use super::pickle::{KnownText, Pickle, PickleValue};
use crate::{MAX_BLOCK_BYTES, blocks::LiveBlocks, error::TraceError, input::Input};

/// Passes on the entries of a snapshot.
pub(crate) struct SnapshotReader {
    pickle: Pickle,
    /// A list of lists.
    devices: PickleValue,
    device: usize,
    entry: usize,
    /// The lists that were read. A pickle may have the same one in many places, which no snapshot has; reading it each
    /// time could take the square of the file's length.
    seen: HashSet<u32>,
}

impl SnapshotReader {
    /// Reads the pickle.
    pub(crate) fn open<R: Read>(input: &mut Input<R>) -> Result<Self, TraceError> {
        let (pickle, top) = Pickle::read(input)?;
        let devices = pickle
            .member(top, KnownText::DeviceTraces)
            .filter(|devices| pickle.list(*devices).is_some());
        let devices = devices.ok_or(TraceError::NothingFound {
            expected: "a dict with a list `device_traces`, as `torch.cuda.memory._dump_snapshot` writes it",
        })?;
        Ok(Self {
            pickle,
            devices,
            device: 0,
            entry: 0,
            seen: HashSet::new(),
        })
    }

    /// Passes on the next entry; `false` behind the last one.
    pub(crate) fn advance(&mut self, blocks: &mut LiveBlocks) -> Result<bool, TraceError> {
        let devices = self.pickle.list(self.devices).unwrap_or_default();
        let Some(device) = devices.get(self.device).copied() else {
            return Ok(false);
        };
        let (PickleValue::List(list), Some(entries)) = (device, self.pickle.list(device)) else {
            return Err(self.wrong("a list of entries"));
        };
        if self.entry == 0 && !self.seen.insert(list) {
            return Err(self.wrong("a list of its own"));
        }
        let Some(entry) = entries.get(self.entry).copied() else {
            self.device += 1;
            self.entry = 0;
            return Ok(true);
        };
        self.take(entry, blocks)?;
        self.entry += 1;
        Ok(true)
    }

    fn take(&self, entry: PickleValue, blocks: &mut LiveBlocks) -> Result<(), TraceError> {
        let member = |name| self.pickle.member(entry, name);
        let action = match member(KnownText::Action) {
            Some(PickleValue::Text(action)) => action,
            _ => return Err(self.wrong("a dict with a text `action`")),
        };
        let is_alloc = action == Some(KnownText::Alloc);
        if !is_alloc && action != Some(KnownText::FreeCompleted) {
            return Ok(());
        }
        let number = |name| match member(name) {
            Some(PickleValue::Int(value)) => u64::try_from(value).ok(),
            Some(PickleValue::LargeInt(value)) => Some(value),
            _ => None,
        };
        let address = number(KnownText::Address)
            .ok_or_else(|| self.wrong("`addr`, a whole number from 0 to 2^64 - 1"))?;
        let key = [self.device as u64, address].map(u64::to_ne_bytes).concat();
        if !is_alloc {
            blocks.free(&key);
            return Ok(());
        }
        let size = number(KnownText::Size).filter(|size| *size <= MAX_BLOCK_BYTES);
        let size = size.ok_or_else(|| self.wrong("`size`, a whole number from 0 to 2^63"))?;
        let stream = number(KnownText::Stream)
            .ok_or_else(|| self.wrong("`stream`, a whole number from 0 to 2^64 - 1"))?;
        blocks.malloc(&key, size, stream)
    }

    fn wrong(&self, expected: &'static str) -> TraceError {
        TraceError::Entry {
            device: self.device,
            entry: self.entry,
            expected,
        }
    }
}
