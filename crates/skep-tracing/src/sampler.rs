//! Which requests are traced.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::settings::{TraceLevels, TraceSettings};

/// Chooses requests under one set of settings.
#[derive(Debug)]
pub(crate) struct Sampler {
    pub(crate) levels: TraceLevels,
    pub(crate) rate: u32,
    pub(crate) log_frequency: u32,
    /// Tells the traces of this sampler from others where they are collected.
    pub(crate) number: u64,
    /// Requests seen.
    seen: AtomicU64,
    /// Requests that are still traced; below 0 for no bound.
    left: AtomicI64,
}

impl Sampler {
    pub(crate) fn new(settings: &TraceSettings, number: u64) -> Self {
        Self {
            levels: settings.levels,
            rate: settings.rate,
            log_frequency: settings.log_frequency,
            number,
            seen: AtomicU64::new(0),
            left: AtomicI64::new(settings.count.map_or(-1, i64::from)),
        }
    }

    /// How many requests are still traced; `None` for no bound.
    pub(crate) fn left(&self) -> Option<u32> {
        u32::try_from(self.left.load(Ordering::Relaxed)).ok()
    }

    /// Whether any request may still be traced.
    pub(crate) fn is_on(&self) -> bool {
        !self.levels.is_off() && self.left() != Some(0)
    }

    /// Whether the next request is traced: the last one of each `rate`, as in Triton. A client's own decision, in
    /// `parent`, counts instead of the rate, and takes nothing from the count.
    pub(crate) fn takes(&self, parent: Option<bool>) -> bool {
        if !self.is_on() {
            return false;
        }
        if let Some(is_sampled) = parent {
            return is_sampled;
        }
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        seen.is_multiple_of(u64::from(self.rate)) && self.take_one()
    }

    fn take_one(&self) -> bool {
        let next = |left: i64| match left {
            0 => None,
            left if left < 0 => Some(left),
            left => Some(left - 1),
        };
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(rate: u32, count: Option<u32>) -> Sampler {
        let levels = TraceLevels {
            timestamps: true,
            tensors: false,
        };
        let settings = TraceSettings {
            levels,
            rate,
            count,
            log_frequency: 0,
        };
        Sampler::new(&settings, 0)
    }

    fn taken(sampler: &Sampler, requests: usize) -> Vec<usize> {
        (1..=requests).filter(|_| sampler.takes(None)).collect()
    }

    #[test]
    fn the_last_request_of_each_rate_is_taken() {
        assert_eq!(taken(&sampler(3, None), 9), [3, 6, 9]);
        assert_eq!(taken(&sampler(1, None), 3), [1, 2, 3]);
    }

    #[test]
    fn the_count_goes_down_and_ends_it() {
        let sampler = sampler(2, Some(2));
        assert_eq!(taken(&sampler, 9), [2, 4]);
        assert_eq!(sampler.left(), Some(0));
        assert!(!sampler.takes(Some(true)), "nothing after the last one");
    }

    #[test]
    fn a_client_decides_for_its_own_requests() {
        let sampler = sampler(1000, Some(1));
        assert!(sampler.takes(Some(true)));
        assert!(!sampler.takes(Some(false)));
        assert_eq!(sampler.left(), Some(1));
    }

    #[test]
    fn nothing_is_taken_at_level_off() {
        let off = Sampler::new(
            &TraceSettings {
                rate: 1,
                ..TraceSettings::default()
            },
            0,
        );
        assert!(!off.takes(None) && !off.takes(Some(true)));
    }
}
