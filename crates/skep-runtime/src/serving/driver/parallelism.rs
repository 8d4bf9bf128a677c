//! How many cores a model's executions really keep busy: what they are charged at their device.
//!
//! A configuration says how many threads an execution may use. On a machine of many cores those of a small model mostly
//! wait for each other, and slots charged for them would stay empty.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use skep_host::lock;

/// Executions before anything is said: the first ones allocate, and start threads.
const FIRST: u32 = 4;

/// The share of a new measurement in the average; the inverse of so many executions.
const MEMORY: f64 = 8.0;

/// A core that is used for less than this is not charged.
const SPARE: f64 = 0.25;

/// Executions that are shorter say nothing: clocks of CPU time are coarse beside them.
const SHORTEST: Duration = Duration::from_micros(20);

/// The cores that a model's executions keep busy.
#[derive(Debug, Default)]
pub(crate) struct Parallelism {
    average: Mutex<Average>,
    /// What the device has not been told yet; 0 for nothing.
    news: AtomicU32,
}

#[derive(Debug, Default)]
struct Average {
    measured: u32,
    cores: f64,
    /// What it was last said to be.
    said: u32,
}

impl Parallelism {
    /// An execution took so much CPU time over all its threads, in so long.
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

    /// The slots that further executions are to be charged, where that has changed.
    pub(crate) fn news(&self) -> Option<u32> {
        // Looked at before each change of slots: mostly there is none.
        if self.news.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(self.news.swap(0, Ordering::Relaxed)).filter(|threads| *threads > 0)
    }
}

/// Whole slots for so many cores.
fn charge(cores: f64) -> u32 {
    // A saturating cast; no machine has more cores.
    #[expect(clippy::cast_sign_loss, reason = "at least 1")]
    let slots = (cores - SPARE).ceil().max(1.0) as u32;
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_executions_use_is_said_when_it_changes() {
        let parallelism = Parallelism::default();
        let measure = |cores: f64, times: u32| {
            for _ in 0..times {
                parallelism.measured(MS.mul_f64(cores), MS);
            }
            parallelism.news()
        };
        assert_eq!(measure(1.1, 3), None, "too few");
        assert_eq!(measure(1.1, 1), Some(1));
        assert_eq!(measure(1.2, 50), None, "no change");
        assert_eq!(measure(3.0, 50), Some(3));
        assert_eq!(parallelism.news(), None, "said once");
        assert_eq!(measure(0.0, 100), Some(1), "an execution takes a slot");
        parallelism.measured(MS, Duration::ZERO);
        assert_eq!(parallelism.news(), None, "too short to tell");
    }
}
