//! The state machine.

mod figures;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use skep_types::Time;

pub use self::figures::{ModelFigures, ResidencyFigures};
use crate::{
    keep_alive::{IdleHistogram, KeepAlive},
    residency::{
        DepartureReason, LoadRefusal, ModelKey, ModelSize, ModelTerms, ResidencyInput,
        ResidencyOptions, ResidencyOutput,
        beyond::{BeyondHistory, LASTS, STAYS},
        eviction::{Candidate, FIRST_HORIZON, NodePattern},
        options::{MIN_STAY, back_off},
        room::{NumberedSize, Room},
        usage::{NODE_IDLE_TIMES, UsePattern},
    },
};

/// Which models are in memory. See the module's page.
#[derive(Debug)]
pub struct Residency {
    options: ResidencyOptions,
    models: BTreeMap<ModelKey, ModelEntry>,
    /// In the order in which they became wanted.
    wanted: BTreeMap<u64, ModelKey>,
    next_turn: u64,
    resident: BTreeSet<ModelKey>,
    loading: usize,
    room: Room,
    beyond: BeyondHistory,
    node: NodePattern,
    /// Bytes that were asked to be given up, until the next word of what is kept.
    reclaiming: u64,
}

/// What is known of a model.
#[derive(Debug)]
struct ModelEntry {
    state: Place,
    /// The bytes of its departures whose memory is not free yet. It may be loaded again meanwhile.
    freeing: VecDeque<u64>,
    is_pinned: bool,
    /// What it holds while it is loading or resident, and is expected to hold otherwise.
    size: NumberedSize,
    load_bytes: u64,
    load_time: Duration,
    /// Whether it has ever been loaded, so that its size is measured.
    is_measured: bool,
    usage: UsePattern,
    /// See [`Candidate::inflation`].
    inflation: f64,
    is_busy: bool,
    /// Requests that wait for it.
    waiting: usize,
    failures: u32,
    /// No load before this.
    not_before: Time,
    /// It leaves as soon as its load is over.
    leaves: bool,
    /// It is known no more, and forgotten once its memory is free.
    is_removed: bool,
}

/// Whether the budget has room for a model beside what never leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Possible,
    /// Not beside what the node holds beyond its models at the moment, which may be a peak.
    Later,
    Never(LoadRefusal),
}

/// Where a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Known,
    Wanted { turn: u64, evicts: bool },
    Loading,
    Resident { since: Time },
}

impl Residency {
    /// Without models.
    #[must_use]
    pub fn new(options: ResidencyOptions) -> Self {
        Self {
            options,
            models: BTreeMap::new(),
            wanted: BTreeMap::new(),
            next_turn: 0,
            resident: BTreeSet::new(),
            loading: 0,
            room: Room::default(),
            beyond: BeyondHistory::default(),
            node: NodePattern {
                idle: IdleHistogram::new(NODE_IDLE_TIMES),
                idle_at_departure: FIRST_HORIZON,
                inflation: 0.0,
            },
            reclaiming: 0,
        }
    }

    /// Applies one input and appends the outputs. `now` never decreases.
    pub fn handle(&mut self, now: Time, input: ResidencyInput, outputs: &mut Vec<ResidencyOutput>) {
        self.apply(now, input, outputs);
        self.settle(now, outputs);
    }

    /// Appends what has become due by `now`.
    pub fn handle_timeout(&mut self, now: Time, outputs: &mut Vec<ResidencyOutput>) {
        self.settle(now, outputs);
    }

    /// When [`Self::handle_timeout`] is to be called: a moment after `now`.
    #[must_use]
    pub fn next_timeout(&self, now: Time) -> Option<Time> {
        let is_kept = self.options.keep_alive == KeepAlive::Forever;
        // Something waits for models that may not leave yet.
        let is_short = !self.wanted.is_empty() || self.room.planned() > self.options.budget;
        if is_kept && !is_short {
            return None;
        }
        let beyond = self.beyond.next_change(now);
        let is_over = self.room.used() > self.options.budget;
        let beyond = beyond.filter(|_| is_over || !self.wanted.is_empty());
        self.residents()
            .filter(|(_, entry)| !entry.is_pinned)
            .flat_map(|(_, entry)| {
                let idle = entry.idle_until(self.options.keep_alive);
                let stays = entry.stays_until().filter(|_| is_short);
                [idle, stays]
            })
            .flatten()
            .filter(|due| *due > now)
            .chain(beyond)
            .min()
    }

    fn apply(&mut self, now: Time, input: ResidencyInput, outputs: &mut Vec<ResidencyOutput>) {
        match input {
            ResidencyInput::Add(model, terms) => self.add(now, model, terms),
            ResidencyInput::Remove(model) => self.remove(model, outputs),
            ResidencyInput::Requested(model) => self.requested(now, model, outputs),
            ResidencyInput::Abandoned(model) => self.abandoned(model),
            ResidencyInput::Used {
                model,
                requests,
                last,
                is_busy,
            } => self.used(model, requests, last, is_busy),
            ResidencyInput::Load { model, evicts } => self.load(now, model, evicts, outputs),
            ResidencyInput::Unload(model) => self.unload(model, outputs),
            ResidencyInput::Loaded {
                model,
                size,
                load_bytes,
                took,
            } => self.loaded(now, model, &size, load_bytes, took, outputs),
            ResidencyInput::Pin(model, is_pinned) => {
                if let Some(entry) = self.models.get_mut(&model) {
                    entry.is_pinned = is_pinned;
                }
            }
            ResidencyInput::Measured(model, size) => {
                if self.resident.contains(&model) {
                    self.resize(model, &size);
                }
            }
            ResidencyInput::Resized {
                model,
                private_bytes,
            } => self.resized(model, private_bytes),
            ResidencyInput::Failed(model) => self.failed(now, model),
            ResidencyInput::Unloaded(model) => self.unloaded(model),
            ResidencyInput::Unclaimed { kept, beyond } => {
                (self.room.kept, self.room.beyond) = (kept, beyond);
                self.beyond.report(now, beyond);
                self.reclaiming = 0;
            }
        }
    }

    fn add(&mut self, now: Time, model: ModelKey, terms: ModelTerms) {
        let size = self.room.number(&terms.size);
        if let Some(entry) = self.models.get_mut(&model) {
            entry.is_pinned = terms.is_pinned;
            (entry.leaves, entry.is_removed) = (false, false);
            (entry.failures, entry.not_before) = (0, now);
            let is_idle = matches!(entry.state, Place::Known | Place::Wanted { .. });
            let size = match is_idle {
                // The files may be others now: what was measured of the old ones may not hold.
                true => {
                    (entry.load_bytes, entry.load_time) = (terms.load_bytes, terms.load_time);
                    entry.is_measured = false;
                    std::mem::replace(&mut entry.size, size)
                }
                false => size,
            };
            self.room.forget(&size);
            return;
        }
        self.models.insert(
            model,
            ModelEntry {
                state: Place::Known,
                freeing: VecDeque::new(),
                is_pinned: terms.is_pinned,
                size,
                load_bytes: terms.load_bytes,
                load_time: terms.load_time,
                is_measured: false,
                usage: UsePattern::new(now),
                inflation: 0.0,
                is_busy: false,
                waiting: 0,
                failures: 0,
                not_before: Time::ZERO,
                leaves: false,
                is_removed: false,
            },
        );
    }

    fn remove(&mut self, model: ModelKey, outputs: &mut Vec<ResidencyOutput>) {
        self.unload(model, outputs);
        if let Some(entry) = self.models.get_mut(&model) {
            entry.is_removed = true;
        }
        self.forget_removed(model);
    }

    fn forget_removed(&mut self, model: ModelKey) {
        let is_over = |entry: &ModelEntry| {
            entry.is_removed && entry.state == Place::Known && entry.freeing.is_empty()
        };
        if self.models.get(&model).is_some_and(is_over)
            && let Some(entry) = self.models.remove(&model)
        {
            self.room.forget(&entry.size);
        }
    }

    fn requested(&mut self, now: Time, model: ModelKey, outputs: &mut Vec<ResidencyOutput>) {
        let Some(entry) = self
            .models
            .get_mut(&model)
            .filter(|entry| !entry.is_removed)
        else {
            outputs.push(ResidencyOutput::Refuse(model, LoadRefusal::Withdrawn));
            return;
        };
        // Those that it serves in the end are counted by `Used`.
        let is_first = entry.waiting == 0;
        if let Some(idle) = entry.usage.used(u64::from(is_first), now) {
            self.node.idle.add(idle);
        }
        entry.waiting += 1;
        entry.leaves = false;
        self.want(now, model, true, outputs);
    }

    fn abandoned(&mut self, model: ModelKey) {
        let Some(entry) = self.models.get_mut(&model) else {
            return;
        };
        entry.waiting = entry.waiting.saturating_sub(1);
        if let Place::Wanted { turn, evicts: true } = entry.state
            && entry.waiting == 0
        {
            entry.state = Place::Known;
            self.wanted.remove(&turn);
        }
    }

    fn used(&mut self, model: ModelKey, requests: u64, last: Time, is_busy: bool) {
        let Some(entry) = self.models.get_mut(&model) else {
            return;
        };
        entry.is_busy = is_busy;
        entry.inflation = self.node.inflation;
        if let Some(idle) = entry.usage.used(requests, last) {
            self.node.idle.add(idle);
        }
    }

    fn load(
        &mut self,
        now: Time,
        model: ModelKey,
        evicts: bool,
        outputs: &mut Vec<ResidencyOutput>,
    ) {
        if let Some(entry) = self.models.get_mut(&model) {
            // An explicit load ends the delay after failures: its caller may have removed the cause.
            (entry.failures, entry.not_before) = (0, now);
            entry.leaves = false;
        }
        self.want(now, model, evicts, outputs);
    }

    /// Queues a model that is only known.
    fn want(
        &mut self,
        now: Time,
        model: ModelKey,
        evicts: bool,
        outputs: &mut Vec<ResidencyOutput>,
    ) {
        let Some(entry) = self.models.get_mut(&model) else {
            return;
        };
        if entry.state != Place::Known {
            return;
        }
        if now < entry.not_before {
            entry.waiting = 0;
            let until = entry.not_before;
            outputs.push(ResidencyOutput::Refuse(
                model,
                LoadRefusal::BackOff { until },
            ));
            return;
        }
        let turn = self.next_turn;
        self.next_turn += 1;
        entry.state = Place::Wanted { turn, evicts };
        self.wanted.insert(turn, model);
    }

    fn unload(&mut self, model: ModelKey, outputs: &mut Vec<ResidencyOutput>) {
        let Some(entry) = self.models.get_mut(&model) else {
            return;
        };
        if let Place::Wanted { turn, .. } = entry.state {
            self.wanted.remove(&turn);
            entry.state = Place::Known;
        }
        entry.leaves = entry.state == Place::Loading;
        if entry.waiting > 0 {
            entry.waiting = 0;
            outputs.push(ResidencyOutput::Refuse(model, LoadRefusal::Withdrawn));
        }
        if matches!(entry.state, Place::Resident { .. }) {
            self.depart(model, DepartureReason::Explicit, outputs);
        }
    }

    fn loaded(
        &mut self,
        now: Time,
        model: ModelKey,
        size: &ModelSize,
        load_bytes: u64,
        took: Duration,
        outputs: &mut Vec<ResidencyOutput>,
    ) {
        if !self.end_load(model, Place::Resident { since: now }) {
            return;
        }
        let Some(entry) = self.models.get_mut(&model) else {
            return;
        };
        (entry.load_bytes, entry.load_time) = (load_bytes, took);
        entry.is_measured = true;
        entry.failures = 0;
        entry.usage.uses = 0;
        entry.usage.last = entry.usage.last.max(now);
        entry.inflation = self.node.inflation;
        let leaves = std::mem::take(&mut entry.leaves) || entry.is_removed;
        self.resident.insert(model);
        self.resize(model, size);
        if leaves {
            self.depart(model, DepartureReason::Explicit, outputs);
        }
    }

    /// Ends the load of a model, which its requests have waited for, in this state. Returns whether it was loading.
    fn end_load(&mut self, model: ModelKey, state: Place) -> bool {
        let loading = |entry: &&mut ModelEntry| entry.state == Place::Loading;
        let Some(entry) = self.models.get_mut(&model).filter(loading) else {
            return false;
        };
        self.room.transient = self.room.transient.saturating_sub(entry.load_bytes);
        self.loading -= 1;
        entry.state = state;
        entry.waiting = 0;
        true
    }

    /// Replaces what a model holds.
    fn resize(&mut self, model: ModelKey, size: &ModelSize) {
        let size = self.room.number(size);
        let Some(entry) = self.models.get_mut(&model) else {
            return;
        };
        self.room.hold(&size);
        let before = std::mem::replace(&mut entry.size, size);
        self.room.release(&before);
        self.room.forget(&before);
    }

    fn resized(&mut self, model: ModelKey, private_bytes: u64) {
        if let Some(entry) = self.models.get_mut(&model)
            && matches!(entry.state, Place::Resident { .. })
        {
            let size = entry.size.with_private(private_bytes);
            self.room.hold(&size);
            self.room.release(&entry.size);
            entry.size = size;
        }
    }

    fn failed(&mut self, now: Time, model: ModelKey) {
        if !self.end_load(model, Place::Known) {
            return;
        }
        let Some(entry) = self.models.get_mut(&model) else {
            return;
        };
        self.room.release(&entry.size);
        entry.failures = entry.failures.saturating_add(1);
        entry.not_before = now + back_off(entry.failures);
        self.forget_removed(model);
    }

    fn unloaded(&mut self, model: ModelKey) {
        let Some(entry) = self.models.get_mut(&model) else {
            return;
        };
        if let Some(freed) = entry.freeing.pop_front() {
            self.room.leaving = self.room.leaving.saturating_sub(freed);
        } else if matches!(entry.state, Place::Resident { .. }) {
            // It left without being told to.
            self.room.release(&entry.size);
            self.resident.remove(&model);
            entry.state = Place::Known;
        }
        self.forget_removed(model);
    }

    fn depart(
        &mut self,
        model: ModelKey,
        reason: DepartureReason,
        outputs: &mut Vec<ResidencyOutput>,
    ) {
        let Some(entry) = self.models.get_mut(&model) else {
            return;
        };
        let freed = self.room.release(&entry.size);
        self.room.leaving = self.room.leaving.saturating_add(freed);
        self.resident.remove(&model);
        entry.freeing.push_back(freed);
        entry.state = Place::Known;
        entry.is_busy = false;
        outputs.push(ResidencyOutput::Unload(model, reason));
    }

    /// Lets models leave and load as far as the budget says.
    fn settle(&mut self, now: Time, outputs: &mut Vec<ResidencyOutput>) {
        self.room.beyond_for_long = self.beyond.held_for(STAYS, now);
        self.end_idle(now, outputs);
        while self.room.planned() > self.options.budget && self.reclaim(outputs) {
            if !self.evict(now, DepartureReason::OverBudget, outputs) {
                break;
            }
        }
        let mut from = 0;
        while self.loading < self.options.loads_at_once
            && let Some((&turn, &model)) = self.wanted.range(from..).next()
        {
            if !self.serve_next(now, turn, model, outputs) {
                break;
            }
            from = turn + 1;
        }
    }

    /// Loads the model whose turn it is, makes room for it, lets it wait, or refuses it. Returns whether the next one may
    /// be looked at.
    fn serve_next(
        &mut self,
        now: Time,
        turn: u64,
        model: ModelKey,
        outputs: &mut Vec<ResidencyOutput>,
    ) -> bool {
        let Some(entry) = self.models.get(&model) else {
            self.wanted.remove(&turn);
            return true;
        };
        let Place::Wanted { evicts, .. } = entry.state else {
            self.wanted.remove(&turn);
            return true;
        };
        let (size, load_bytes) = (entry.size.clone(), entry.load_bytes);
        let needed = self.room.needed_by(&size).saturating_add(load_bytes);
        if self.room.used().saturating_add(needed) > self.options.budget {
            match self.fit(now, &size, load_bytes) {
                Fit::Possible => {}
                // Nobody leaves in vain. Smaller models do not wait for it.
                Fit::Later if evicts => return true,
                Fit::Later => {}
                Fit::Never(refusal) => {
                    self.refuse(turn, model, refusal, outputs);
                    return true;
                }
            }
        }
        // Its tensors are claimed before others leave, so that none of them counts as room.
        self.room.hold(&size);
        self.room.transient = self.room.transient.saturating_add(load_bytes);
        let budget = self.options.budget;
        let mut is_possible = true;
        while is_possible && self.room.planned() > budget && self.reclaim(outputs) {
            is_possible = evicts && self.evict(now, DepartureReason::RoomFor(model), outputs);
        }
        if self.room.used() <= budget {
            self.wanted.remove(&turn);
            self.loading += 1;
            if let Some(entry) = self.models.get_mut(&model) {
                entry.state = Place::Loading;
            }
            outputs.push(ResidencyOutput::Load(model));
            return true;
        }
        let is_coming = self.room.planned() <= budget || self.reclaiming > 0;
        self.room.release(&size);
        self.room.transient = self.room.transient.saturating_sub(load_bytes);
        if !evicts && !is_coming {
            let free = budget.saturating_sub(self.room.used());
            let refusal = LoadRefusal::NoRoom { needed, free };
            self.refuse(turn, model, refusal, outputs);
            return true;
        }
        false
    }

    /// Whether a model can be loaded if everything else leaves that may.
    fn fit(&self, now: Time, size: &NumberedSize, load_bytes: u64) -> Fit {
        let budget = self.options.budget;
        let stay = self
            .models
            .values()
            .filter(|entry| entry.is_pinned && entry.state.holds())
            .map(|entry| &entry.size);
        let pinned = self.room.union(stay.clone());
        let with_it = self
            .room
            .union(stay.chain([size]))
            .saturating_add(load_bytes);
        let beyond = self.beyond.held_for(LASTS, now).min(self.room.beyond);
        if with_it.saturating_add(beyond) > budget {
            return Fit::Never(LoadRefusal::TooLarge {
                needed: with_it.saturating_sub(pinned),
                budget,
                pinned,
                beyond,
            });
        }
        match with_it.saturating_add(self.room.beyond) > budget {
            true => Fit::Later,
            false => Fit::Possible,
        }
    }

    fn refuse(
        &mut self,
        turn: u64,
        model: ModelKey,
        refusal: LoadRefusal,
        outputs: &mut Vec<ResidencyOutput>,
    ) {
        self.wanted.remove(&turn);
        if let Some(entry) = self.models.get_mut(&model) {
            entry.state = Place::Known;
            entry.waiting = 0;
        }
        outputs.push(ResidencyOutput::Refuse(model, refusal));
    }

    /// Asks for weights that no model uses. Returns whether that is not enough.
    fn reclaim(&mut self, outputs: &mut Vec<ResidencyOutput>) -> bool {
        let over = self.room.planned().saturating_sub(self.options.budget);
        let wanted = over.min(self.room.kept);
        if wanted > self.reclaiming {
            outputs.push(ResidencyOutput::Reclaim(wanted));
            self.reclaiming = wanted;
        }
        over > self.reclaiming
    }

    /// Lets the model with the least merit leave. Returns whether there was one that may.
    fn evict(
        &mut self,
        now: Time,
        reason: DepartureReason,
        outputs: &mut Vec<ResidencyOutput>,
    ) -> bool {
        let mut worst: Option<(bool, f64, ModelKey)> = None;
        for (model, entry) in self.residents() {
            if entry.is_pinned || entry.stays_until().is_some_and(|until| now < until) {
                continue;
            }
            let freed = self.room.freed_by(&entry.size);
            if freed == 0 {
                continue;
            }
            let candidate = Candidate {
                usage: &entry.usage,
                load_time: entry.load_time,
                freed,
                inflation: entry.inflation,
            };
            let merit = self.options.policy.merit(now, &candidate, &self.node);
            let rank = (entry.is_busy, merit, model);
            if worst.is_none_or(|worst| (rank.0, rank.1) < (worst.0, worst.1)) {
                worst = Some(rank);
            }
        }
        let Some((_, merit, model)) = worst else {
            return false;
        };
        if let Some(entry) = self.models.get(&model) {
            self.node.departs(now, &entry.usage, merit);
        }
        self.depart(model, reason, outputs);
        true
    }

    fn end_idle(&mut self, now: Time, outputs: &mut Vec<ResidencyOutput>) {
        let keep_alive = self.options.keep_alive;
        if keep_alive == KeepAlive::Forever {
            return;
        }
        let idle: Vec<ModelKey> = self
            .residents()
            .filter(|(_, entry)| !entry.is_pinned && !entry.is_busy)
            .filter(|(_, entry)| entry.idle_until(keep_alive).is_some_and(|end| now >= end))
            .map(|(model, _)| model)
            .collect();
        for model in idle {
            self.depart(model, DepartureReason::Idle, outputs);
        }
    }

    fn residents(&self) -> impl Iterator<Item = (ModelKey, &ModelEntry)> {
        let keys = self.resident.iter();
        keys.filter_map(|key| Some((*key, self.models.get(key)?)))
    }
}

impl ModelEntry {
    /// When it has been idle for too long; `None` if it may be for ever.
    fn idle_until(&self, keep_alive: KeepAlive) -> Option<Time> {
        let window = keep_alive.window(self.usage.idle_times())?;
        Some(self.usage.last + window)
    }

    /// Until when a resident model stays, whatever else needs room.
    fn stays_until(&self) -> Option<Time> {
        match self.state {
            Place::Resident { since } => Some(since + self.load_time.max(MIN_STAY)),
            _ => None,
        }
    }
}

impl Place {
    /// Whether its size is held.
    const fn holds(self) -> bool {
        matches!(self, Self::Loading | Self::Resident { .. })
    }
}
