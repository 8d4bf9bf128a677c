//! How long something idle stays although nothing needs its room.
//!
//! No fixed time suits all models: those that are asked for once an hour stay for nothing, and those whose pauses are a
//! little longer than it start cold each time. [`KeepAlive::IdleHistogram`] keeps each as long as its own
//! pauses usually last.
//!
//! Sources: Shahrad and others, "Serverless in the Wild", ATC 2020 (histograms of idle times); Yang and others,
//! "INFless", ASPLOS 2022 (a short-term beside a long-term one: here counts halve from time to time instead).

use std::time::Duration;

/// How long an idle model stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeepAlive {
    /// Until something needs its room.
    Forever,
    /// For this long.
    Fixed(Duration),
    /// As long as its pauses usually last, by their histogram: 99 of 100 of those that are not longer than this. Before it
    /// has had a few pauses, for this long.
    IdleHistogram(Duration),
}

/// A shorter idle time is no pause: whatever is busy has many of them.
const SHORTEST_PAUSE: Duration = Duration::from_secs(10);

/// So many pauses say how long they usually last.
const FEWEST_PAUSES: f64 = 4.0;

/// The part of the pauses that may last longer.
const LONGER_PART: f64 = 0.01;

impl KeepAlive {
    /// How long a model with these idle times stays; `None` for ever.
    #[must_use]
    pub fn window(self, idle: &IdleHistogram) -> Option<Duration> {
        match self {
            Self::Forever => None,
            Self::Fixed(window) => Some(window),
            Self::IdleHistogram(longest) => {
                let usual = idle.usual_pause(longest);
                Some(usual.map_or(longest, |usual| usual.min(longest)))
            }
        }
    }
}

/// Two buckets an octave from a millisecond on; the last one begins after three days.
const BUCKETS: usize = 57;

/// Where the first bucket ends.
const FIRST_SECONDS: f64 = 1e-3;

/// A histogram of idle times. Counts halve from time to time, so that it follows a pattern that changes.
#[derive(Debug, Clone)]
pub struct IdleHistogram {
    counts: [u16; BUCKETS],
    total: u32,
    /// Counts halve when they add up to this.
    most: u32,
}

impl IdleHistogram {
    /// An empty histogram, whose counts halve when they add up to `most`.
    #[must_use]
    pub const fn new(most: u32) -> Self {
        Self {
            counts: [0; BUCKETS],
            total: 0,
            most,
        }
    }

    /// Notes an idle time.
    pub fn add(&mut self, idle: Duration) {
        if self.total >= self.most {
            for count in &mut self.counts {
                *count /= 2;
            }
            self.total = self.counts.iter().map(|&count| u32::from(count)).sum();
        }
        let bucket = bucket(idle.as_secs_f64());
        self.counts[bucket] = self.counts[bucket].saturating_add(1);
        self.total += 1;
    }

    /// How many idle times were longer than this, in seconds. Within a bucket they lie evenly on the scale of octaves.
    pub(crate) fn longer(&self, than: f64) -> f64 {
        let place = place(than);
        let (whole, part) = (bucket(than), place.fract());
        let above: u32 = self.counts[whole + 1..]
            .iter()
            .map(|&count| u32::from(count))
            .sum();
        let inside = match place < 0.0 || whole == BUCKETS - 1 {
            true => 1.0,
            false => 1.0 - part,
        };
        f64::from(above) + f64::from(self.counts[whole]) * inside
    }

    /// What 99 of 100 pauses do not exceed, of those up to `longest`: nothing that is kept so long helps with the others.
    /// To the end of a bucket; `None` if there were too few pauses.
    fn usual_pause(&self, longest: Duration) -> Option<Duration> {
        let pauses = self.longer(SHORTEST_PAUSE.as_secs_f64());
        if pauses < FEWEST_PAUSES {
            return None;
        }
        let hopeless = self.longer(longest.as_secs_f64());
        let allowed = hopeless + LONGER_PART * (pauses - hopeless).max(0.0);
        let from = bucket(SHORTEST_PAUSE.as_secs_f64());
        let ends = (from..BUCKETS).map(bucket_end);
        let mut usual = [SHORTEST_PAUSE.as_secs_f64()].into_iter().chain(ends);
        let usual = usual.find(|end| self.longer(*end) <= allowed);
        usual.map(Duration::from_secs_f64)
    }
}

/// Where an idle time lies on the scale of buckets.
fn place(seconds: f64) -> f64 {
    2.0 * (seconds.max(1e-9) / FIRST_SECONDS).log2() + 1.0
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the buckets"
)]
fn bucket(seconds: f64) -> usize {
    place(seconds).clamp(0.0, (BUCKETS - 1) as f64) as usize
}

/// Where a bucket ends, in seconds.
fn bucket_end(bucket: usize) -> f64 {
    FIRST_SECONDS * ((bucket as f64) / 2.0).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_times_are_counted_on_a_scale_of_half_octaves() {
        let mut histogram = IdleHistogram::new(1000);
        for seconds in [0.0, 0.0005, 1.0, 1.0, 60.0, 3600.0, 1e9] {
            histogram.add(Duration::from_secs_f64(seconds));
        }
        let longer = [0.0, 0.002, 2.0, 100.0, 100_000.0].map(|than| histogram.longer(than));
        assert_eq!(longer[1..], [5.0, 3.0, 2.0, 1.0]);
        assert!(longer[0] >= 5.0);
        // Evenly within the bucket of 1 s.
        let (low, high) = (histogram.longer(0.75), histogram.longer(0.95));
        assert!(5.0 > low && low > high && high > 3.0, "{low} {high}");
        // What lies behind the end counts as the end.
        assert_eq!(histogram.longer(1e12), 1.0);
    }

    #[test]
    fn old_idle_times_lose_their_weight() {
        let mut histogram = IdleHistogram::new(100);
        for _ in 0..100 {
            histogram.add(Duration::from_secs(1));
        }
        for _ in 0..1000 {
            histogram.add(Duration::from_secs(60));
        }
        let short = histogram.longer(0.1) - histogram.longer(30.0);
        assert!(short <= 1.0, "{short} of {}", histogram.total);
        assert!((50..=100).contains(&histogram.total));
    }

    #[test]
    fn a_model_stays_as_long_as_its_pauses_usually_last() {
        let longest = Duration::from_secs(3600);
        let by_pauses = KeepAlive::IdleHistogram(longest);
        let mut idle = IdleHistogram::new(1000);
        assert_eq!(by_pauses.window(&idle), Some(longest), "nothing is known");
        // Busy for a while, then a pause of two minutes, and so on.
        for _ in 0..5 {
            for _ in 0..50 {
                idle.add(Duration::from_millis(20));
            }
            idle.add(Duration::from_secs(120));
        }
        let window = by_pauses.window(&idle).expect("not for ever");
        let seconds = window.as_secs_f64();
        // The end of the bucket, half an octave wide.
        assert!((120.0..=170.0).contains(&seconds), "{seconds}");
        // They all last longer than it may stay, so that it would stay for nothing.
        let short = KeepAlive::IdleHistogram(Duration::from_secs(60));
        assert_eq!(short.window(&idle), Some(SHORTEST_PAUSE));
        assert_eq!(KeepAlive::Forever.window(&idle), None);
        assert_eq!(KeepAlive::Fixed(longest).window(&idle), Some(longest));
    }

    #[test]
    fn short_idle_times_are_no_pauses() {
        let mut idle = IdleHistogram::new(1000);
        for _ in 0..500 {
            idle.add(Duration::from_secs(2));
        }
        let longest = Duration::from_secs(100);
        let by_pauses = KeepAlive::IdleHistogram(longest);
        assert_eq!(by_pauses.window(&idle), Some(longest));
        for _ in 0..5 {
            idle.add(Duration::from_secs(15));
        }
        let window = by_pauses.window(&idle).expect("not for ever");
        assert!((15..=16).contains(&window.as_secs()), "{window:?}");
    }

    #[test]
    fn a_bucket_ends_where_the_next_begins() {
        for index in 0..BUCKETS - 1 {
            let end = bucket_end(index);
            assert_eq!(bucket(end * 0.999), index);
            assert_eq!(bucket(end * 1.001), index + 1);
        }
    }
}
