//! Slots of instances: each belongs to one sequence at most, and is that sequence's row in the instance's batches.

use skep_types::Time;

use super::{
    DirectPolicy, SequencePayload,
    table::{Seat, SequenceNumber, SequenceTable, Stage},
};
use crate::{Batch, BatchEnd, BatchRows, InstanceId, Output, Outputs};

/// The slots of all instances.
#[derive(Debug)]
pub(super) struct SlotBoard {
    policy: DirectPolicy,
    /// Slots of each instance.
    slots_each: usize,
    /// In the order in which they joined. They are few.
    instances: Vec<SlotInstance>,
    /// Slots that a sequence could get.
    free: usize,
    /// When the oldest request of an instance has waited for other slots as long as it may.
    pub(super) wake: Option<Time>,
    compute: ComputeSlot,
    needs_compute: bool,
}

/// The compute slot of the next execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ComputeSlot {
    NotAsked,
    Asked,
    Granted,
}

#[derive(Debug)]
struct SlotInstance {
    id: InstanceId,
    slots: Vec<Option<SequenceNumber>>,
    /// The sequences of the batch that it executes; `None` if it is free.
    running: Option<Vec<SequenceNumber>>,
    /// It gets no further batch, and no sequence gets its slots.
    retired: bool,
}

impl SlotInstance {
    fn occupied(&self) -> impl Iterator<Item = SequenceNumber> + '_ {
        self.slots.iter().filter_map(|slot| *slot)
    }
}

/// An instance's ready slots.
struct ReadySlots {
    count: usize,
    /// The sequence whose request has waited longest.
    oldest: SequenceNumber,
    since: Time,
}

impl SlotBoard {
    pub(super) fn new(policy: DirectPolicy, slots_each: usize, needs_compute: bool) -> Self {
        Self {
            policy,
            slots_each,
            instances: Vec::new(),
            free: 0,
            wake: None,
            compute: ComputeSlot::NotAsked,
            needs_compute,
        }
    }

    pub(super) fn free(&self) -> usize {
        self.free
    }

    pub(super) fn has_instances(&self) -> bool {
        self.instances.iter().any(|instance| !instance.retired)
    }

    pub(super) fn is_busy(&self, id: InstanceId) -> Option<bool> {
        let known = self.instances.iter().find(|instance| instance.id == id)?;
        (!known.retired).then_some(known.running.is_some())
    }

    pub(super) fn granted(&mut self) {
        self.compute = ComputeSlot::Granted;
    }

    /// Adds an instance if it is new.
    pub(super) fn join(&mut self, id: InstanceId) {
        if self.instances.iter().any(|instance| instance.id == id) {
            return;
        }
        self.free += self.slots_each;
        self.instances.push(SlotInstance {
            id,
            slots: vec![None; self.slots_each],
            running: None,
            retired: false,
        });
    }

    /// Gives a sequence a slot: the lowest one that is free on any instance, so that sequences spread over instances.
    pub(super) fn take(&mut self, number: SequenceNumber) -> Option<Seat> {
        if self.free == 0 {
            return None;
        }
        let active = self.instances.iter_mut().filter(|i| !i.retired);
        let (index, instance) = active
            .filter_map(|instance| {
                let index = instance.slots.iter().position(Option::is_none)?;
                Some((index, instance))
            })
            .min_by_key(|(index, _)| *index)?;
        instance.slots[index] = Some(number);
        self.free -= 1;
        Some(Seat::Slot {
            instance: instance.id,
            index,
        })
    }

    /// Frees a slot.
    pub(super) fn release(&mut self, id: InstanceId, index: usize) {
        if let Some(instance) = self.instances.iter_mut().find(|i| i.id == id) {
            instance.slots[index] = None;
            self.free += usize::from(!instance.retired);
        }
    }

    /// An instance has finished its batch. Returns the sequences that had a request in it.
    pub(super) fn finished(&mut self, id: InstanceId) -> Vec<SequenceNumber> {
        let instance = self.instances.iter_mut().find(|i| i.id == id);
        let running = instance.and_then(|instance| instance.running.take());
        running.unwrap_or_default()
    }

    /// An instance gets no further batch. Returns the sequences that need another slot; those of the batch that it
    /// executes keep theirs until it is gone.
    pub(super) fn retire(&mut self, id: InstanceId) -> Vec<SequenceNumber> {
        let Some(instance) = self.instances.iter_mut().find(|i| i.id == id) else {
            return Vec::new();
        };
        if instance.retired {
            return Vec::new();
        }
        instance.retired = true;
        self.free -= instance.slots.len() - instance.occupied().count();
        let running = instance.running.as_deref().unwrap_or_default();
        let leaving = instance.occupied().filter(|n| !running.contains(n));
        let leaving: Vec<SequenceNumber> = leaving.collect();
        for slot in &mut instance.slots {
            if slot.is_some_and(|number| leaving.contains(&number)) {
                *slot = None;
            }
        }
        leaving
    }

    /// Removes an instance, whose batch was told to be [finished](Self::finished). Returns the sequences that need
    /// another slot.
    pub(super) fn remove(&mut self, id: InstanceId) -> Vec<SequenceNumber> {
        let leaving = self.retire(id);
        let Some(index) = self.instances.iter().position(|i| i.id == id) else {
            return leaving;
        };
        let instance = self.instances.remove(index);
        leaving.into_iter().chain(instance.occupied()).collect()
    }

    /// Forms batches for free instances.
    pub(super) fn dispatch<P: SequencePayload>(
        &mut self,
        now: Time,
        hurried: bool,
        table: &mut SequenceTable<P>,
        outputs: &mut Outputs<P>,
    ) {
        self.wake = None;
        for index in 0..self.instances.len() {
            let instance = &self.instances[index];
            if instance.retired || instance.running.is_some() {
                continue;
            }
            let Some(ready) = ready_slots(instance, table) else {
                continue;
            };
            let until = ready.since + self.policy.max_queue_delay;
            let is_enough = ready.count >= self.policy.least_ready;
            if !is_enough && !hurried && now < until {
                self.wake = Some(self.wake.map_or(until, |wake| wake.min(until)));
                continue;
            }
            if self.needs_compute {
                match self.compute {
                    ComputeSlot::Granted => self.compute = ComputeSlot::NotAsked,
                    ComputeSlot::Asked => return,
                    ComputeSlot::NotAsked => {
                        self.compute = ComputeSlot::Asked;
                        outputs.push(Output::WantSlot);
                        return;
                    }
                }
            }
            let end = match (self.slots_each, is_enough || hurried) {
                (1, _) => BatchEnd::NoBatching,
                (_, true) => BatchEnd::Slots,
                (_, false) => BatchEnd::Delay,
            };
            let batch = form(&mut self.instances[index], ready.oldest, end, table);
            let instance = self.instances[index].id;
            outputs.push(Output::Dispatch { instance, batch });
        }
        if self.compute == ComputeSlot::Granted {
            self.compute = ComputeSlot::NotAsked;
            outputs.push(Output::ReturnSlot);
        }
    }
}

/// An instance's ready slots; `None` if no slot is.
fn ready_slots<P: SequencePayload>(
    instance: &SlotInstance,
    table: &SequenceTable<P>,
) -> Option<ReadySlots> {
    let ready = instance.occupied().filter_map(|number| {
        let sequence = table.get(number);
        let head = sequence.pending.front().filter(|_| sequence.is_ready())?;
        Some((head.since, head.request.id, number))
    });
    let (mut count, mut oldest) = (0, None);
    for candidate in ready {
        count += 1;
        if oldest.is_none_or(|oldest| candidate < oldest) {
            oldest = Some(candidate);
        }
    }
    let (since, _, oldest) = oldest?;
    Some(ReadySlots {
        count,
        oldest,
        since,
    })
}

/// Takes the requests of all ready slots that can run together with the one that has waited longest.
fn form<P: SequencePayload>(
    instance: &mut SlotInstance,
    oldest: SequenceNumber,
    end: BatchEnd,
    table: &mut SequenceTable<P>,
) -> Batch<P> {
    let chosen: Vec<(u32, SequenceNumber)> = {
        let head = |number| {
            let sequence = table.get(number);
            let head = sequence.pending.front().filter(|_| sequence.is_ready());
            head.map(|step| &step.request.payload)
        };
        let first = head(oldest).expect("the sequence is ready");
        let slots = (0..).zip(&instance.slots);
        let taken = slots.filter_map(|(row, slot)| Some((row, (*slot)?)));
        taken
            .filter(|(_, number)| {
                *number == oldest || head(*number).is_some_and(|other| first.joins(other))
            })
            .collect()
    };
    let total = instance.slots.iter().rposition(Option::is_some);
    let total = total.map_or(1, |last| last + 1);
    let requests = chosen.iter();
    let requests = requests.map(|(_, number)| table.pop(*number, Stage::Running));
    let requests: Vec<_> = requests.collect();
    let rows = (requests.len() < total).then(|| {
        Box::new(BatchRows {
            of_requests: chosen.iter().map(|(row, _)| *row).collect(),
            total,
        })
    });
    let running = chosen.into_iter().map(|(_, number)| number);
    instance.running = Some(running.collect());
    Batch {
        requests,
        end,
        rows,
    }
}
