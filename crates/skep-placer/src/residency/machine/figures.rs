//! What the machine tells about itself: each model, and sums.

use std::time::Duration;

use skep_types::Time;

use super::{ModelEntry, Place, Residency};
use crate::residency::{ModelKey, ResidencyState};

/// Sums over all models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResidencyFigures {
    /// The budget.
    pub budget: u64,
    /// Bytes in use, those about to be free included.
    pub used: u64,
    /// Bytes of resident and loading models, each shared tensor once.
    pub held: u64,
    /// What those would be if no model shared anything.
    pub unshared: u64,
    /// The part of what they hold that is tensors, which others may share.
    pub shared: u64,
    /// Bytes that loads in progress take beside what their models will hold.
    pub transient: u64,
    /// Bytes of models that have left, until they are free.
    pub leaving: u64,
    /// Weights that no model uses.
    pub kept: u64,
    /// Models that are known.
    pub known: usize,
    /// Models that wait for room.
    pub wanted: usize,
    /// Models that are being loaded.
    pub loading: usize,
    /// Models that have instances.
    pub resident: usize,
}

/// What is known of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelFigures {
    /// Where it is.
    pub state: ResidencyState,
    /// Whether it never leaves by itself.
    pub is_pinned: bool,
    /// Whether it has been loaded before, so that its sizes are measured; otherwise they are estimates.
    pub is_measured: bool,
    /// Bytes that no other model shares.
    pub private_bytes: u64,
    /// Bytes of tensors that others may share.
    pub shared_bytes: u64,
    /// How long a load takes.
    pub load_time: Duration,
    /// How long it has not been used; since it is known, if it never was.
    pub idle: Duration,
}

impl Residency {
    /// Where a model is; `None` for one that is not known.
    #[must_use]
    pub fn state(&self, model: ModelKey) -> Option<ResidencyState> {
        self.models.get(&model).map(ModelEntry::shown)
    }

    /// How many departures of a model there were whose memory is not free yet.
    #[must_use]
    pub fn departures(&self, model: ModelKey) -> usize {
        let entry = self.models.get(&model);
        entry.map_or(0, |entry| entry.freeing.len())
    }

    /// The models that have instances, by key.
    pub fn resident(&self) -> impl Iterator<Item = ModelKey> {
        self.resident.iter().copied()
    }

    /// Sums over all models.
    #[must_use]
    pub fn figures(&self) -> ResidencyFigures {
        ResidencyFigures {
            budget: self.options.budget,
            used: self.room.used(),
            held: self.room.held(),
            unshared: self.room.unshared(),
            shared: self.room.shared(),
            transient: self.room.transient,
            leaving: self.room.leaving,
            kept: self.room.kept,
            known: self.models.len(),
            wanted: self.wanted.len(),
            loading: self.loading,
            resident: self.resident.len(),
        }
    }

    /// How many models are in each state.
    #[must_use]
    pub fn state_counts(&self) -> Vec<(ResidencyState, usize)> {
        let mut counts = ResidencyState::ALL.map(|state| (state, 0));
        for entry in self.models.values() {
            let shown = entry.shown();
            for (state, count) in &mut counts {
                *count += usize::from(*state == shown);
            }
        }
        counts.into()
    }

    /// What is known of a model; `None` for one that is not known.
    #[must_use]
    pub fn model(&self, now: Time, model: ModelKey) -> Option<ModelFigures> {
        let entry = self.models.get(&model)?;
        let private_bytes = entry.size.private_bytes();
        Some(ModelFigures {
            state: entry.shown(),
            is_pinned: entry.is_pinned,
            is_measured: entry.is_measured,
            private_bytes,
            shared_bytes: self.room.total(&entry.size) - private_bytes,
            load_time: entry.load_time,
            idle: now.since(entry.usage.last),
        })
    }

    /// What the models that never leave hold together once all of them are loaded.
    #[must_use]
    pub fn pinned_bytes(&self) -> u64 {
        let pinned = self.models.values().filter(|entry| entry.is_pinned);
        self.room.union(pinned.map(|entry| &entry.size))
    }
}

impl ModelEntry {
    fn shown(&self) -> ResidencyState {
        match self.state {
            Place::Known if !self.freeing.is_empty() => ResidencyState::Leaving,
            Place::Known if self.is_measured && self.size.has_tensors() => ResidencyState::Stored,
            Place::Known => ResidencyState::Known,
            Place::Wanted { .. } => ResidencyState::Wanted,
            Place::Loading => ResidencyState::Loading,
            Place::Resident { .. } => ResidencyState::Resident,
        }
    }
}
