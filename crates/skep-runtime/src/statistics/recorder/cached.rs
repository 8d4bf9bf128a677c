//! The live figures of a version's response cache.

use std::time::Duration;

use skep_types::Time;

use super::instance::RecorderFigures;
use crate::{
    clock::nanoseconds,
    statistics::{DurationStatistic, options::RecorderOptions},
};

/// Requests whose response was found, and those whose response was computed and kept.
#[derive(Debug, Default)]
pub(super) struct CachedRequests {
    /// Of the requests whose response was found: everything that a request without an execution has.
    pub(super) figures: RecorderFigures,
    /// Look-ups that found a response, their digests included.
    pub(super) hit: DurationStatistic,
    /// Look-ups that found none, and keeping the response then.
    pub(super) miss: DurationStatistic,
    /// When the last response was found.
    pub(super) last_hit: Option<Time>,
}

impl CachedRequests {
    pub(super) fn new(options: &RecorderOptions) -> Self {
        Self {
            figures: RecorderFigures::new(options),
            ..Self::default()
        }
    }

    /// Records a request that arrived at `arrived`, whose look-up took from `began` to `ended`.
    pub(super) fn found(&mut self, arrived: Time, began: Time, ended: Time) {
        let is_late = self.figures.answered(arrived, began, ended);
        self.figures.late += u64::from(is_late);
        self.figures.in_time += u64::from(!is_late);
        self.hit.add(1, nanoseconds(ended.since(began)));
        self.last_hit = self.last_hit.max(Some(ended));
    }

    pub(super) fn missed(&mut self, took: Duration) {
        self.miss.add(1, nanoseconds(took));
    }
}
