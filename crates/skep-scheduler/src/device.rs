//! A device's compute slots, shared among models.
//!
//! A CPU has as many slots as usable cores, and an execution takes as many as it has busy threads. Without slots, each
//! model's instances start whenever they have a batch, more threads run than there are cores, and executions slow each
//! other down: no latency can be predicted.
//!
//! ```text
//!   a model's scheduler:   WantSlot ------> want  -+
//!                          Dispatch <------ Grant <-+--- slots, fair among models
//!                          finished ------> release-+
//! ```
//!
//! Among the models that want a slot, the one that had the least time for its weight comes first (start-time fair
//! queueing). A model that wanted nothing for a while does not catch up on what it left to others. When an execution
//! begins, its model is charged what its last one took; when it ends, the charge is corrected. So grants in between
//! count.
//!
//! Slots are granted as soon as they are free: none idles while a model wants what is there. Only a model that needs
//! several at once can be passed over by models that need fewer; after [`MAX_PASSES`] times slots are kept back for it.
//!
//! # Long executions
//!
//! An execution cannot be stopped, but no model has to wait for one that is much longer than its own. When an execution
//! has run for twice what a waiting model's executions take, and for a least time ([`MIN_TURN`]), its slots are *lent*
//! to that model. The system then schedules the threads of both. Models whose executions are alike never borrow from
//! each other, so they keep the latencies that they have alone. A slot is lent once: however many executions are stuck,
//! as many threads of short ones compute as there are slots.
//!
//! Source: Goyal, Vin and Cheng, "Start-time fair queueing", SIGCOMM 1996. Lending is our own.

use std::time::Duration;

use skep_types::Time;
use smallvec::SmallVec;

/// How often a model that needs several slots is passed over before slots are kept back for it.
pub const MAX_PASSES: u32 = 4;

/// The least time for which an execution keeps its slots, however short the waiting ones are, unless a device says
/// otherwise. It fits many executions of a small model, and does not make a model of 1 ms ten times as slow.
pub const MIN_TURN: Duration = Duration::from_millis(2);

/// An execution this many times as long as a waiting model's lends its slots to that model.
const LONG: f64 = 2.0;

/// A model version that runs on the device. The number of one that left is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelShareId(pub u32);

/// Models that were granted a slot, in this order.
pub type Grants = SmallVec<[ModelShareId; 2]>;

/// The compute slots of one device. See the module's documentation.
#[derive(Debug)]
pub struct DeviceShare {
    slots: u32,
    min_turn: Duration,
    /// Slots that executions hold, without borrowed ones; at most all.
    held: u32,
    models: Vec<Option<ModelShare>>,
    /// The start of the latest execution in virtual time; no execution begins before it.
    virtual_now: f64,
}

#[derive(Debug)]
struct ModelShare {
    weight: f64,
    threads: u32,
    wants: bool,
    /// Slot time that it had, divided by its weight, in nanoseconds.
    had: f64,
    /// What its last execution took, in nanoseconds.
    last_ns: f64,
    running: SmallVec<[SlotRun; 2]>,
    passed_over: u32,
}

/// A running execution.
#[derive(Debug, Clone, Copy)]
struct SlotRun {
    start: Time,
    /// Slots that it holds.
    held: u32,
    /// Slots that it uses while other executions hold them.
    borrowed: u32,
}

/// What a waiting model could have.
#[derive(Debug, Clone, Copy)]
struct Offer {
    free: u32,
    /// Slots of executions that are long for it, less what is borrowed from them already.
    lent: u32,
}

impl SlotRun {
    const fn threads(self) -> u32 {
        self.held + self.borrowed
    }
}

impl DeviceShare {
    /// A device with this many slots, at least one.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self {
            slots: slots.max(1),
            min_turn: MIN_TURN,
            held: 0,
            models: Vec::new(),
            virtual_now: 0.0,
        }
    }

    /// Sets the least time for which an execution keeps its slots; [`Duration::MAX`] means that it never lends them.
    #[must_use]
    pub const fn with_min_turn(mut self, min_turn: Duration) -> Self {
        self.min_turn = min_turn;
        self
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// How many are taken.
    #[must_use]
    pub fn busy(&self) -> u32 {
        self.held
    }

    /// Adds a model. Each of its executions keeps `threads` slots busy (all slots, if there are fewer). Of two models
    /// that always want a slot, one with twice the `weight` gets twice the time; a weight that is not a positive number
    /// counts as 1.
    pub fn join(&mut self, weight: f64, threads: u32) -> ModelShareId {
        let model = ModelShare {
            weight: if weight.is_finite() && weight > 0.0 {
                weight
            } else {
                1.0
            },
            threads: threads.clamp(1, self.slots),
            wants: false,
            had: self.virtual_now,
            last_ns: 0.0,
            running: SmallVec::new(),
            passed_over: 0,
        };
        let vacant = self.models.iter().position(Option::is_none);
        let index = vacant.unwrap_or_else(|| {
            self.models.push(None);
            self.models.len() - 1
        });
        self.models[index] = Some(model);
        ModelShareId(u32::try_from(index).expect("fewer models than 2^32"))
    }

    /// Sets how many slots each further execution of a model keeps busy.
    pub fn set_threads(&mut self, id: ModelShareId, threads: u32) {
        let slots = self.slots;
        if let Some(model) = self.model(id) {
            model.threads = threads.clamp(1, slots);
        }
    }

    /// Removes a model, with the executions that it still runs.
    pub fn leave(&mut self, id: ModelShareId, now: Time, grants: &mut Grants) {
        if let Some(model) = self.models[id.0 as usize].take() {
            self.held -= model.running.iter().map(|run| run.held).sum::<u32>();
            self.settle_debts();
            self.grant(now, grants);
        }
    }

    /// A model wants to begin one more execution.
    pub fn want(&mut self, id: ModelShareId, now: Time, grants: &mut Grants) {
        let virtual_now = self.virtual_now;
        if let Some(model) = self.model(id) {
            model.wants = true;
            // Time in which it wanted nothing is not credited.
            model.had = model.had.max(virtual_now);
            self.grant(now, grants);
        }
    }

    /// Ends a model's execution, which took this long; `wants` says whether the model wants to begin another one. Both
    /// come in one call, or it would always be the other models' turn.
    pub fn release(
        &mut self,
        id: ModelShareId,
        now: Time,
        took: Duration,
        wants: bool,
        grants: &mut Grants,
    ) {
        if wants && let Some(model) = self.model(id) {
            model.wants = true;
        }
        self.give_back(id, now, Some(took), grants);
    }

    /// Returns a slot that a model was granted and did not use.
    pub fn give_up(&mut self, id: ModelShareId, now: Time, grants: &mut Grants) {
        self.give_back(id, now, None, grants);
    }

    /// Grants slots that can be lent since time has passed: none before [`DeviceShare::next_timeout`].
    pub fn handle_timeout(&mut self, now: Time, grants: &mut Grants) {
        self.grant(now, grants);
    }

    /// When [`DeviceShare::handle_timeout`] may have something to do, if nothing else happens before; `None` if no
    /// model waits.
    #[must_use]
    pub fn next_timeout(&self, now: Time) -> Option<Time> {
        let waiting = self.models.iter().flatten().filter(|model| model.wants);
        let long = waiting.flat_map(|model| {
            let turn = model.turn(self.min_turn);
            self.running().map(move |run| run.start + turn)
        });
        long.filter(|moment| *moment > now).min()
    }

    fn running(&self) -> impl Iterator<Item = &SlotRun> {
        self.models
            .iter()
            .flatten()
            .flat_map(|model| &model.running)
    }

    fn give_back(
        &mut self,
        id: ModelShareId,
        now: Time,
        took: Option<Duration>,
        grants: &mut Grants,
    ) {
        let Some(model) = self.model(id) else {
            return;
        };
        // The execution that ended is the one whose start fits best.
        let began = took.map_or(now.as_nanos(), |took| {
            let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            now.as_nanos().saturating_sub(took)
        });
        let runs = model.running.iter().enumerate();
        let nearest = runs.min_by_key(|(_, run)| run.start.as_nanos().abs_diff(began));
        let Some((position, _)) = nearest else { return };
        let run = model.running.swap_remove(position);
        let took_ns = took.map_or(0.0, |took| took.as_nanos() as f64);
        model.had += model.cost(took_ns - model.last_ns, run.threads());
        if took.is_some() {
            model.last_ns = took_ns;
        }
        self.held -= run.held;
        self.settle_debts();
        self.grant(now, grants);
    }

    fn model(&mut self, id: ModelShareId) -> Option<&mut ModelShare> {
        self.models.get_mut(id.0 as usize)?.as_mut()
    }

    /// Gives free slots to executions that borrowed some.
    fn settle_debts(&mut self) {
        let runs = self.models.iter_mut().flatten();
        for run in runs.flat_map(|model| &mut model.running) {
            let settled = run.borrowed.min(self.slots - self.held);
            run.borrowed -= settled;
            run.held += settled;
            self.held += settled;
        }
    }

    /// What a waiting model could have now.
    fn offer(&self, model: &ModelShare, now: Time, oldest: Option<Time>) -> Offer {
        let free = self.slots - self.held;
        let turn = model.turn(self.min_turn);
        if free >= model.threads || oldest.is_none_or(|oldest| now < oldest + turn) {
            return Offer { free, lent: 0 };
        }
        let (mut long, mut borrowed) = (0_u32, 0_u32);
        for run in self.running() {
            if now < run.start + turn {
                borrowed += run.borrowed;
            } else {
                long += run.held;
            }
        }
        Offer {
            free,
            lent: long.saturating_sub(borrowed),
        }
    }

    /// Grants the slots that are free or lent.
    fn grant(&mut self, now: Time, grants: &mut Grants) {
        while let Some(NextGrant {
            index,
            held,
            borrowed,
            passed,
        }) = self.choose(now)
        {
            for passed in passed {
                if let Some(model) = &mut self.models[passed] {
                    model.passed_over += 1;
                }
            }
            let Some(model) = &mut self.models[index] else {
                return;
            };
            let start = model.had;
            model.wants = false;
            model.passed_over = 0;
            model.running.push(SlotRun {
                start: now,
                held,
                borrowed,
            });
            model.had += model.cost(model.last_ns, held + borrowed);
            grants.push(ModelShareId(
                u32::try_from(index).expect("fewer models than 2^32"),
            ));
            self.held += held;
            self.virtual_now = self.virtual_now.max(start);
        }
    }

    /// The model whose turn it is, if there are enough slots for any.
    fn choose(&self, now: Time) -> Option<NextGrant> {
        let models = self.models.iter().enumerate();
        let mut waiting: SmallVec<[(usize, &ModelShare); 8]> = models
            .filter_map(|(index, model)| Some((index, model.as_ref()?)))
            .filter(|(_, model)| model.wants)
            .collect();
        if waiting.is_empty() {
            return None;
        }
        waiting.sort_by(|(_, a), (_, b)| a.had.total_cmp(&b.had));
        let oldest = self.running().map(|run| run.start).min();
        let mut passed = SmallVec::new();
        // Whether free slots are kept back for a model that was passed over.
        let mut is_kept = false;
        for (index, model) in waiting {
            let Offer { free, lent } = self.offer(model, now, oldest);
            let held = match is_kept {
                true => 0,
                false => free.min(model.threads),
            };
            if held + lent >= model.threads {
                let borrowed = model.threads - held;
                return Some(NextGrant {
                    index,
                    held,
                    borrowed,
                    // Borrowed slots are not taken from models before it.
                    passed: if held > 0 { passed } else { SmallVec::new() },
                });
            }
            is_kept |= model.passed_over >= MAX_PASSES;
            passed.push(index);
        }
        None
    }
}

/// The next execution.
struct NextGrant {
    index: usize,
    held: u32,
    borrowed: u32,
    /// Models that would have come before it and need more slots than there are.
    passed: SmallVec<[usize; 8]>,
}

impl ModelShare {
    /// What an execution of this many nanoseconds on so many slots costs it.
    fn cost(&self, ns: f64, threads: u32) -> f64 {
        ns * f64::from(threads) / self.weight
    }

    /// How long an execution may run before it is long for this model.
    fn turn(&self, least: Duration) -> Duration {
        let own = Duration::try_from_secs_f64(self.last_ns * LONG / 1e9);
        own.unwrap_or(Duration::MAX).max(least)
    }
}
