//! The mailboxes of a model's instances.
//!
//! A mailbox holds one batch, which never blocks the sender, since an instance has at most one batch at a time.
//! Mailboxes are not part of the scheduler's state, so that an instance's thread is woken outside of the critical
//! section.

use std::sync::{
    PoisonError, RwLock, RwLockWriteGuard,
    atomic::{AtomicUsize, Ordering},
    mpsc::{SyncSender, TrySendError},
};

use skep_scheduler::InstanceId;

use super::JobBatch;

/// The mailboxes, by instance number.
#[derive(Default)]
pub(super) struct Mailboxes {
    boxes: RwLock<Vec<Mailbox>>,
    /// Instances that take batches or are being recreated.
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
    /// The instance is ending. Its number stays taken until its thread has ended.
    Closed,
}

impl Mailboxes {
    /// Opens a mailbox. Returns its instance's number.
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

    /// Closes an instance's mailbox. Returns whether it was the last one that could take batches.
    pub(super) fn close(&self, instance: InstanceId) -> bool {
        let mut boxes = self.write();
        let Some(mailbox) = boxes.get_mut(index(instance)) else {
            return false;
        };
        let before = std::mem::replace(mailbox, Mailbox::Closed);
        matches!(before, Mailbox::Open { passive: false, .. })
            && self.possible.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether the instance is still wanted.
    pub(super) fn is_open(&self, instance: InstanceId) -> bool {
        let boxes = self.boxes.read().unwrap_or_else(PoisonError::into_inner);
        matches!(boxes.get(index(instance)), Some(Mailbox::Open { .. }))
    }

    pub(super) fn close_all(&self) {
        self.write().fill_with(|| Mailbox::Closed);
    }

    /// Frees an instance's number.
    pub(super) fn vacate(&self, instance: InstanceId) {
        if let Some(mailbox) = self.write().get_mut(index(instance)) {
            *mailbox = Mailbox::Vacant;
        }
    }

    /// Sends a batch to an idle instance, whose mailbox is empty: this neither blocks nor allocates. The batch comes
    /// back if the instance has ended.
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
