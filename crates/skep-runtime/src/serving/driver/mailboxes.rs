//! How the instances of a model are reached.
//!
//! A mailbox holds one batch: an instance has at most one at a time, so that sending never blocks. They are apart from the
//! scheduler's state, so that waking an instance's thread is outside of the critical section.

use std::sync::{
    PoisonError, RwLock, RwLockWriteGuard,
    atomic::{AtomicUsize, Ordering},
    mpsc::{SyncSender, TrySendError},
};

use skep_scheduler::InstanceId;

use super::JobBatch;

/// The mailboxes by instance number.
#[derive(Default)]
pub(super) struct Mailboxes {
    boxes: RwLock<Vec<Mailbox>>,
    /// Instances that take batches or are being made again.
    possible: AtomicUsize,
}

enum Mailbox {
    /// No instance has this number.
    Vacant,
    Open {
        sender: SyncSender<JobBatch>,
        /// It gets no batches.
        passive: bool,
    },
    /// The instance ends; its number is taken until its thread has.
    Closed,
}

impl Mailboxes {
    /// Opens one; the number of its instance.
    pub(super) fn open(&self, sender: SyncSender<JobBatch>, passive: bool) -> InstanceId {
        let mut boxes = self.write();
        let vacant = boxes
            .iter()
            .position(|mailbox| matches!(mailbox, Mailbox::Vacant));
        let index = vacant.unwrap_or_else(|| {
            boxes.push(Mailbox::Vacant);
            boxes.len() - 1
        });
        boxes[index] = Mailbox::Open { sender, passive };
        if !passive {
            self.possible.fetch_add(1, Ordering::Relaxed);
        }
        InstanceId(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// Closes an instance's mailbox; whether it was the last one that could take batches.
    pub(super) fn close(&self, instance: InstanceId) -> bool {
        let mut boxes = self.write();
        let Some(mailbox) = boxes.get_mut(index(instance)) else {
            return false;
        };
        let before = std::mem::replace(mailbox, Mailbox::Closed);
        matches!(before, Mailbox::Open { passive: false, .. })
            && self.possible.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether the instance is to go on.
    pub(super) fn is_open(&self, instance: InstanceId) -> bool {
        let boxes = self.boxes.read().unwrap_or_else(PoisonError::into_inner);
        matches!(boxes.get(index(instance)), Some(Mailbox::Open { .. }))
    }

    pub(super) fn close_all(&self) {
        self.write().fill_with(|| Mailbox::Closed);
    }

    /// The number is free again.
    pub(super) fn vacate(&self, instance: InstanceId) {
        if let Some(mailbox) = self.write().get_mut(index(instance)) {
            *mailbox = Mailbox::Vacant;
        }
    }

    /// Gives a batch to an instance; gives it back where that has ended. The mailbox of an instance that was free is
    /// empty: this neither blocks nor allocates.
    pub(super) fn send(&self, instance: InstanceId, batch: JobBatch) -> Result<(), JobBatch> {
        let boxes = self.boxes.read().unwrap_or_else(PoisonError::into_inner);
        match boxes.get(index(instance)) {
            Some(Mailbox::Open { sender, .. }) => sender.try_send(batch).map_err(|refused| {
                let (TrySendError::Full(batch) | TrySendError::Disconnected(batch)) = refused;
                batch
            }),
            _ => Err(batch),
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Mailbox>> {
        self.boxes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn index(instance: InstanceId) -> usize {
    usize::try_from(instance.0).unwrap_or(usize::MAX)
}
