//! What residency decided last, and why.

use std::collections::{BTreeMap, VecDeque};

use skep_placer::residency::ModelKey;
use skep_types::Time;

use crate::clock;

/// What was decided about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DecisionKind {
    /// It is loaded.
    Load,
    /// It leaves, because others need its room.
    Evict,
    /// It leaves, because it was idle for too long.
    Expire,
    /// It is not loaded, because the budget has no room for it.
    Refuse,
    /// Its load failed.
    Fail,
    /// The number of its instances changes.
    Scale,
    /// Its instances, their threads or the cap on its batches change.
    Configure,
}

impl DecisionKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Load,
        Self::Evict,
        Self::Expire,
        Self::Refuse,
        Self::Fail,
        Self::Scale,
        Self::Configure,
    ];

    /// The word for people, for JSON and for metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Evict => "evict",
            Self::Expire => "expire",
            Self::Refuse => "refuse",
            Self::Fail => "fail",
            Self::Scale => "scale",
            Self::Configure => "configure",
        }
    }
}

/// A decision.
#[derive(Debug, Clone)]
pub(super) struct Decision {
    pub(super) at: Time,
    pub(super) model: ModelKey,
    pub(super) kind: DecisionKind,
    pub(super) why: String,
}

/// How many decisions are kept, over all models.
const KEPT: usize = 100;

/// A reason longer than this is cut: errors of a model's library can be pages long.
const MAX_WHY_BYTES: usize = 500;

/// The last decisions, and how many there were of each kind.
#[derive(Debug, Default)]
pub(super) struct DecisionLog {
    last: VecDeque<Decision>,
    counts: BTreeMap<DecisionKind, u64>,
}

impl DecisionLog {
    pub(super) fn note(&mut self, model: ModelKey, kind: DecisionKind, mut why: String) {
        *self.counts.entry(kind).or_default() += 1;
        why.truncate(why.floor_char_boundary(MAX_WHY_BYTES));
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        let at = clock::now();
        self.last.push_back(Decision {
            at,
            model,
            kind,
            why,
        });
    }

    /// The last decisions, the latest first.
    pub(super) fn last(&self) -> impl Iterator<Item = &Decision> {
        self.last.iter().rev()
    }

    /// How many decisions there were of a kind.
    pub(super) fn count(&self, kind: DecisionKind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_decisions_are_kept_and_all_are_counted() {
        let mut log = DecisionLog::default();
        for number in 0..150 {
            log.note(ModelKey(number), DecisionKind::Load, "é".repeat(1000));
        }
        log.note(ModelKey(7), DecisionKind::Fail, "no file".to_owned());
        let last: Vec<&Decision> = log.last().collect();
        assert_eq!(last.len(), KEPT);
        assert_eq!((last[0].model, &*last[0].why), (ModelKey(7), "no file"));
        assert_eq!(last[99].model, ModelKey(51));
        assert_eq!(last[1].why.len(), MAX_WHY_BYTES);
        let counts = DecisionKind::ALL.map(|kind| log.count(kind));
        assert_eq!(counts, [150, 0, 0, 0, 1, 0, 0]);
    }
}
