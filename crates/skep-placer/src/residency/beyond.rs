//! Memory beyond the models, over the last seconds: what lasts, and what was a peak.

use std::{collections::VecDeque, time::Duration};

use skep_types::Time;

/// How long memory beyond the models has to be held before models leave for it. The heap keeps what a load or a model
/// that left has freed for a moment, and the next load uses it again.
pub(super) const STAYS: Duration = Duration::from_secs(1);

/// How long it has to be held before a load is refused for it.
pub(super) const LASTS: Duration = Duration::from_secs(5);

/// What was reported lately.
#[derive(Debug, Default)]
pub(super) struct BeyondHistory {
    /// The reports of the last [`LASTS`], and the one that was the latest before them.
    reports: VecDeque<(Time, u64)>,
}

impl BeyondHistory {
    pub(super) fn report(&mut self, now: Time, bytes: u64) {
        self.reports.push_back((now, bytes));
        while self
            .reports
            .get(1)
            .is_some_and(|(at, _)| *at + LASTS <= now)
        {
            self.reports.pop_front();
        }
    }

    /// What was held all the time for so long: nothing before the first report.
    pub(super) fn held_for(&self, span: Duration, now: Time) -> u64 {
        let in_force = self.reports.iter().rposition(|(at, _)| *at + span <= now);
        let Some(first) = in_force else {
            return 0;
        };
        let reports = self.reports.range(first..).map(|(_, bytes)| *bytes);
        reports.min().unwrap_or(0)
    }

    /// When [`Self::held_for`] may change without a report: a moment after `now`.
    pub(super) fn next_change(&self, now: Time) -> Option<Time> {
        let reports = self.reports.iter();
        let ends = reports.flat_map(|(at, _)| [*at + STAYS, *at + LASTS]);
        ends.filter(|end| *end > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_least_of_a_span_is_held_for_it() {
        let mut history = BeyondHistory::default();
        assert_eq!(
            (
                history.held_for(LASTS, at(1.0)),
                history.next_change(at(1.0))
            ),
            (0, None)
        );
        for (seconds, bytes) in [(1.0, 70), (2.0, 40), (3.0, 90)] {
            history.report(at(seconds), bytes);
        }
        assert_eq!(history.held_for(LASTS, at(5.9)), 0);
        assert_eq!(history.held_for(STAYS, at(2.9)), 40);
        assert_eq!(history.held_for(STAYS, at(4.0)), 90);
        assert_eq!(history.next_change(at(3.5)), Some(at(4.0)));
        assert_eq!(history.next_change(at(5.9)), Some(at(6.0)));
        assert_eq!(history.held_for(LASTS, at(6.0)), 40);
        assert_eq!(history.held_for(LASTS, at(7.9)), 40);
        assert_eq!(history.held_for(LASTS, at(8.0)), 90);
        assert_eq!(history.next_change(at(8.0)), None);
        history.report(at(9.0), 5);
        assert_eq!(history.held_for(LASTS, at(9.0)), 5);
        assert_eq!(history.reports.len(), 2);
    }
}
