//! How many cores a model's executions keep busy: the slots that the device charges for them.
//!
//! A configuration says how many threads an execution may use. On a machine with many cores, the threads of a small
//! model mostly wait for each other, and slots charged for them would stay empty.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use skep_host::lock;

/// Executions before the device is told anything: the first ones allocate, and start threads.
const FIRST: u32 = 4;

/// A new measurement counts for the inverse of this in the average.
const MEMORY: f64 = 8.0;

/// A core that is busy for a smaller share than this is not charged.
const SPARE: f64 = 0.25;

/// Shorter executions are not measured: clocks of CPU time are too coarse for them.
const SHORTEST: Duration = Duration::from_micros(20);

/// The cores that a model's executions keep busy.
#[derive(Debug, Default)]
pub(crate) struct Parallelism {
    average: Mutex<Average>,
    /// Slots that the device has not been told yet; 0 for no news.
    news: AtomicU32,
}

#[derive(Debug, Default)]
struct Average {
    measured: u32,
    cores: f64,
    /// The slots that were last noted as news.
    said: u32,
}

impl Parallelism {
    /// An execution took `cpu` of CPU time over all its threads, within `duration`.
    pub(crate) fn measured(&self, cpu: Duration, duration: Duration) {
        if duration < SHORTEST {
            return;
        }
        let cores = cpu.as_secs_f64() / duration.as_secs_f64();
        let mut average = lock(&self.average);
        average.measured += 1;
        let memory = f64::from(average.measured).min(MEMORY);
        average.cores += (cores - average.cores) / memory;
        if average.measured < FIRST {
            return;
        }
        let threads = charge(average.cores);
        if threads != average.said {
            average.said = threads;
            self.news.store(threads, Ordering::Relaxed);
        }
    }

    /// Executions have so many threads from now on. What was measured before says nothing about them.
    pub(crate) fn assume(&self, threads: u32) {
        let mut average = lock(&self.average);
        *average = Average {
            said: threads,
            ..Average::default()
        };
        self.news.store(threads, Ordering::Relaxed);
    }

    /// The slots to charge for further executions, if they have changed. Clears the news.
    pub(crate) fn news(&self) -> Option<u32> {
        // Read at each change of slots; mostly there is no news.
        if self.news.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(self.news.swap(0, Ordering::Relaxed)).filter(|threads| *threads > 0)
    }
}

/// Whole slots for this many cores.
fn charge(cores: f64) -> u32 {
    // A saturating cast: no machine has more cores.
    #[expect(clippy::cast_sign_loss, reason = "at least 1")]
    let slots = (cores - SPARE).ceil().max(1.0) as u32;
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The news after `times` executions of a millisecond on this many cores.
    fn measure(parallelism: &Parallelism, cores: f64, times: u32) -> Option<u32> {
        for _ in 0..times {
            parallelism.measured(MS.mul_f64(cores), MS);
        }
        parallelism.news()
    }

    #[test]
    fn a_change_of_busy_cores_is_told_once() {
        let parallelism = Parallelism::default();
        assert_eq!(measure(&parallelism, 1.1, 3), None, "too few");
        assert_eq!(measure(&parallelism, 1.1, 1), Some(1));
        assert_eq!(measure(&parallelism, 1.2, 50), None, "no change");
        assert_eq!(measure(&parallelism, 3.0, 50), Some(3));
        assert_eq!(parallelism.news(), None, "said once");
        assert_eq!(
            measure(&parallelism, 0.0, 100),
            Some(1),
            "an execution takes a slot"
        );
        parallelism.measured(MS, Duration::ZERO);
        assert_eq!(parallelism.news(), None, "too short to tell");
        parallelism.assume(2);
        assert_eq!(parallelism.news(), Some(2));
        assert_eq!(measure(&parallelism, 1.0, 3), None, "too few again");
        assert_eq!(measure(&parallelism, 1.0, 1), Some(1));
    }
}
