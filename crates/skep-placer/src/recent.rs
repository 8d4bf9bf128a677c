//! What was observed lately: the largest value of a span, and samples that span a window.

use std::{collections::VecDeque, time::Duration};

use skep_types::Time;

/// The largest of the values that were noted within a span.
#[derive(Debug)]
pub struct RecentMax<T> {
    /// When each was noted; each is larger than those after it.
    values: VecDeque<(Time, T)>,
}

impl<T> Default for RecentMax<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> RecentMax<T> {
    /// Nothing was noted yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            values: VecDeque::new(),
        }
    }
}

impl<T: Copy + PartialOrd> RecentMax<T> {
    /// Notes a value, forgets those older than `span` (none of them without one), and returns the largest that is left.
    pub fn note(&mut self, now: Time, value: T, span: Option<Duration>) -> T {
        while self.values.back().is_some_and(|(_, last)| *last <= value) {
            self.values.pop_back();
        }
        self.values.push_back((now, value));
        let is_old = |at: Time| span.is_some_and(|span| now.since(at) > span);
        while self.values.front().is_some_and(|(at, _)| is_old(*at)) {
            self.values.pop_front();
        }
        self.largest().unwrap_or(value)
    }

    /// The largest, as of the last value that was noted.
    #[must_use]
    pub fn largest(&self) -> Option<T> {
        self.values.front().map(|(_, value)| *value)
    }
}

/// Adds a sample, and drops the first ones as long as those after them span the window.
pub(crate) fn push_sample<T>(
    samples: &mut VecDeque<(Time, T)>,
    now: Time,
    sample: T,
    window: Duration,
) {
    samples.push_back((now, sample));
    while samples.len() > 2 && now.since(samples[1].0) >= window {
        samples.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn the_largest_of_a_span_is_kept_for_it() {
        let mut recent = RecentMax::new();
        assert_eq!(recent.largest(), None);
        let span = Some(Duration::from_secs(10));
        let noted = [(0, 3), (2, 7), (4, 5), (12, 1), (13, 1), (15, 2)];
        let largest = noted.map(|(second, value)| recent.note(at(second), value, span));
        assert_eq!(largest, [3, 7, 7, 7, 5, 2]);
        assert_eq!(recent.note(at(1000), 1, None), 2, "for ever");
    }

    #[test]
    fn samples_span_the_window() {
        let mut samples = VecDeque::new();
        for second in 0..10 {
            push_sample(&mut samples, at(second), second, Duration::from_secs(3));
        }
        let kept: Vec<u64> = samples.iter().map(|(_, sample)| *sample).collect();
        assert_eq!(kept, [6, 7, 8, 9]);
    }
}
