//! When a model was used: how often, at what rate, and how long it was idle in between.

use std::time::Duration;

use skep_types::Time;

use crate::keep_alive::IdleHistogram;

/// How the rate forgets: uses of this long ago count half.
const HALF_LIFE_SECONDS: f64 = 600.0;

/// Idle times of one model that count.
const MODEL_IDLE_TIMES: u32 = 128;
/// Idle times of all models that count.
pub(super) const NODE_IDLE_TIMES: u32 = 50_000;

/// When a model was used.
#[derive(Debug, Clone)]
pub(super) struct UsePattern {
    /// The last use; a load counts as one.
    pub(super) last: Time,
    /// Uses since it was loaded.
    pub(super) uses: u64,
    /// Uses that count half after each half-life, as of `last`.
    recent: f64,
    idle: IdleHistogram,
}

impl UsePattern {
    pub(super) const fn new(now: Time) -> Self {
        Self {
            last: now,
            uses: 0,
            recent: 0.0,
            idle: IdleHistogram::new(MODEL_IDLE_TIMES),
        }
    }

    /// Notes uses, the last of them at `last`. Returns how long the model had been idle, unless it is its first use.
    pub(super) fn used(&mut self, requests: u64, last: Time) -> Option<Duration> {
        if requests == 0 {
            return None;
        }
        let is_first = self.recent <= 0.0;
        let idle = last.since(self.last);
        self.recent = self.recent(last) + requests as f64;
        self.uses = self.uses.saturating_add(requests);
        self.last = self.last.max(last);
        if is_first {
            return None;
        }
        self.idle.add(idle);
        Some(idle)
    }

    /// How long it was idle between its uses.
    pub(super) const fn idle_times(&self) -> &IdleHistogram {
        &self.idle
    }

    /// Uses that count half after each half-life.
    pub(super) fn recent(&self, now: Time) -> f64 {
        let passed = now.since(self.last).as_secs_f64();
        self.recent * (-passed / HALF_LIFE_SECONDS).exp2()
    }

    /// Requests a second, over the last ten minutes or so.
    pub(super) fn rate(&self, now: Time) -> f64 {
        self.recent(now) * std::f64::consts::LN_2 / HALF_LIFE_SECONDS
    }

    /// How probably the model is used within `horizon` if its requests come independently, at the rate that it had
    /// lately.
    pub(super) fn probable_by_rate(&self, horizon: Duration, now: Time) -> f64 {
        -(-self.rate(now) * horizon.as_secs_f64()).exp_m1()
    }

    /// How probably the model is used within `horizon`, given how long it has been idle: the share of its longer idle
    /// times that ended by then, with one idle time of `node`, those of all models, among them.
    pub(super) fn probable_within(
        &self,
        horizon: Duration,
        now: Time,
        node: &IdleHistogram,
    ) -> f64 {
        let age = now.since(self.last).as_secs_f64();
        let end = age + horizon.as_secs_f64();
        let ended = |histogram: &IdleHistogram| {
            let longer = histogram.longer(age);
            (longer - histogram.longer(end), longer)
        };
        let (own_ended, own) = ended(&self.idle);
        let (node_ended, node) = ended(node);
        let usual = node_ended / node.max(1.0);
        (own_ended + usual) / (own + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_rate_follows_the_requests_and_fades() {
        let mut pattern = UsePattern::new(Time::ZERO);
        for second in 1..=6000 {
            pattern.used(2, at(f64::from(second)));
        }
        let rate = pattern.rate(at(6000.0));
        assert!((rate - 2.0).abs() < 0.02, "{rate}");
        let later = pattern.rate(at(6000.0 + HALF_LIFE_SECONDS));
        assert!((later - rate / 2.0).abs() < 1e-9, "{later}");
        assert_eq!(pattern.uses, 12_000);
        let chance = pattern.probable_by_rate(Duration::from_millis(100), at(6000.0));
        assert!(
            (chance - (1.0 - (-0.2_f64).exp())).abs() < 0.002,
            "{chance}"
        );
        assert_eq!(pattern.used(0, at(9000.0)), None);
        assert_eq!(pattern.last, at(6000.0));
    }

    #[test]
    fn a_periodic_model_is_expected_at_its_period() {
        let node = IdleHistogram::new(NODE_IDLE_TIMES);
        let mut pattern = UsePattern::new(Time::ZERO);
        for minute in 1..=50 {
            pattern.used(1, at(f64::from(minute) * 60.0));
        }
        let within = |seconds_after: f64, horizon| {
            let now = at(3000.0 + seconds_after);
            pattern.probable_within(Duration::from_secs(horizon), now, &node)
        };
        assert!(within(1.0, 10) < 0.05, "just used");
        assert!(within(40.0, 60) > 0.9, "soon due");
        assert!(within(1.0, 100) > 0.9, "a whole period ahead");
        assert_eq!(
            within(300.0, 60),
            0.0,
            "overdue, and nothing is known of such models"
        );
    }

    #[test]
    fn what_a_model_does_not_tell_all_models_do() {
        let mut node = IdleHistogram::new(NODE_IDLE_TIMES);
        for _ in 0..10 {
            node.add(Duration::from_secs(30));
            node.add(Duration::from_secs(3000));
        }
        let unknown = UsePattern::new(Time::ZERO);
        let chance = unknown.probable_within(Duration::from_secs(60), at(1.0), &node);
        assert!((chance - 0.5).abs() < 0.01, "{chance}");
    }
}
