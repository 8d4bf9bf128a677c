//! How many requests a second a model has to be ready for.

use std::{collections::VecDeque, time::Duration};

use skep_placer::{
    keep_alive::{IdleHistogram, KeepAlive},
    recent::RecentMax,
};
use skep_types::Time;

/// Over this time the usual rate is measured.
const LONG: Duration = Duration::from_secs(10);
/// Over these times growth is noticed, as far as the number of instances is decided so often.
const SHORT: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(200)];

/// Growth counts beyond what chance brings: so many standard deviations of a count.
const CHANCE: f64 = 2.0;

/// Idle times of one model that count.
const IDLE_TIMES: u32 = 512;

/// The requests for one model.
#[derive(Debug)]
pub(super) struct Demand {
    /// From one tick to the next.
    tick: Duration,
    /// Requests since the last tick.
    current: u32,
    /// Ends of ticks, and the requests in each, over [`LONG`].
    ticks: VecDeque<(Time, u32)>,
    /// Rates over the window in which unneeded instances stay.
    peaks: RecentMax<f64>,
    idle: IdleHistogram,
    last: Option<Time>,
}

impl Demand {
    pub(super) const fn new(tick: Duration) -> Self {
        Self {
            tick,
            current: 0,
            ticks: VecDeque::new(),
            peaks: RecentMax::new(),
            idle: IdleHistogram::new(IDLE_TIMES),
            last: None,
        }
    }

    pub(super) fn arrived(&mut self, now: Time) {
        self.current += 1;
        if let Some(last) = self.last {
            self.idle.add(now.since(last));
        }
        self.last = Some(now);
    }

    /// The highest rate of the window in which unneeded instances stay. `more` counts beside the requests of late.
    pub(super) fn tick(&mut self, now: Time, more: f64, keep_alive: KeepAlive) -> f64 {
        self.ticks.push_back((now, self.current));
        self.current = 0;
        while self
            .ticks
            .front()
            .is_some_and(|(end, _)| now.since(*end) >= LONG)
        {
            self.ticks.pop_front();
        }
        let rate = self.rate(now);
        // Of requests that wait for longer than so many come in that time, most are late already.
        let rate = rate + more.min(rate);
        let window = keep_alive.window(&self.idle);
        self.peaks.note(now, rate, window)
    }

    fn rate(&self, now: Time) -> f64 {
        let count = |within: Duration| {
            let ticks = self.ticks.iter().rev();
            let counted = ticks.take_while(|(end, _)| now.since(*end) < within);
            let sum: u32 = counted.map(|(_, count)| *count).sum();
            f64::from(sum)
        };
        // At the start there is less time than that.
        let passed = now.as_nanos() as f64 / 1e9;
        let over = |within: Duration| within.as_secs_f64().min(passed.max(0.1));
        let short = SHORT.iter().filter(|window| **window >= self.tick);
        let growth = short.map(|window| {
            let count = count(*window);
            (count - CHANCE * count.sqrt()) / over(*window)
        });
        growth.fold(count(LONG) / over(LONG), f64::max)
    }

    /// Whether it may still need an instance.
    pub(super) fn is_active(&self) -> bool {
        self.current > 0 || self.peaks.largest().is_some_and(|peak| peak > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_rate_is_followed_and_its_peak_kept() {
        let keep = KeepAlive::Fixed(Duration::from_secs(30));
        let mut demand = Demand::new(Duration::from_millis(100));
        let (mut last, mut last_peak) = (0.0, 0.0);
        let mut run = |demand: &mut Demand, rate: u64, seconds: std::ops::Range<u64>| {
            for tick in seconds.start * 10..seconds.end * 10 {
                for one in 0..rate / 10 {
                    demand.arrived(at(tick * 100 + one));
                }
                last = demand.tick(at(tick * 100 + 99), 0.0, keep);
            }
            last
        };
        let peak = run(&mut demand, 100, 0..20);
        assert!((99.0..110.0).contains(&peak), "{peak}");
        // After a fifth of a second of nine times the rate: all but two deviations of it.
        for tick in 0..2 {
            for one in 0..90 {
                demand.arrived(at(20_000 + 100 * tick + one));
            }
            last_peak = demand.tick(at(20_099 + 100 * tick), 0.0, keep);
        }
        assert!((last_peak - 766.0).abs() < 1.0, "{last_peak}");
        // After a second: closer.
        let peak = run(&mut demand, 900, 21..22);
        assert!((peak - 840.0).abs() < 1.0, "{peak}");
        let peak = run(&mut demand, 0, 22..40);
        assert!((peak - 840.0).abs() < 1.0, "{peak}");
        let peak = run(&mut demand, 0, 40..80);
        assert_eq!(peak, 0.0);
        assert!(!demand.is_active());
    }

    #[test]
    fn what_waits_counts_as_much_as_what_comes_at_most() {
        let keep = KeepAlive::Fixed(Duration::from_secs(30));
        let peak = |more| {
            let mut demand = Demand::new(Duration::from_secs(1));
            for second in 1..=10 {
                for one in 0..10 {
                    demand.arrived(at(second * 1000 - 500 + one));
                }
                demand.tick(at(second * 1000), 0.0, keep);
            }
            demand.tick(at(10_001), more, keep)
        };
        assert_eq!([peak(0.0), peak(4.0), peak(1e6)], [10.0, 14.0, 20.0]);
    }
}
