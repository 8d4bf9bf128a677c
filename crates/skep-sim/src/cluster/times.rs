//! How long a batch takes while others run beside it.

use std::{collections::BTreeMap, time::Duration};

use skep_placer::selection::Configuration;

/// Execution times of a model on some number of CPUs, for each number of batches at a time and each size.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ExecutionTimes {
    /// By batches at a time, from 1, and sizes, from 1.
    rows: Vec<Vec<Duration>>,
}

impl ExecutionTimes {
    /// Out of a profile: between measured sizes and numbers a line, beyond the largest what the largest takes.
    pub(super) fn of(configurations: &[Configuration], cpus: u32) -> Self {
        let mut measured: BTreeMap<u32, BTreeMap<u32, Duration>> = BTreeMap::new();
        let on_these = configurations.iter().filter(|one| one.cpus == cpus);
        for one in on_these {
            let sizes = measured.entry(one.concurrency).or_default();
            sizes.insert(one.batch, one.latency);
        }
        let largest = measured.values().filter_map(|sizes| sizes.keys().last());
        let largest = largest.copied().max().unwrap_or(1);
        let by_size: BTreeMap<u32, Vec<Duration>> = measured
            .iter()
            .map(|(concurrency, sizes)| {
                let sizes = (1..=largest).map(|size| between(sizes, size));
                (*concurrency, sizes.collect())
            })
            .collect();
        let most = by_size.keys().last().copied().unwrap_or(1);
        let row = |concurrency: u32| {
            let size = |index: usize| {
                let column = by_size.iter().map(|(key, sizes)| (*key, sizes[index]));
                between(&column.collect(), concurrency)
            };
            (0..largest as usize).map(size).collect()
        };
        Self {
            rows: (1..=most).map(row).collect(),
        }
    }

    /// What a batch of this size takes while `running` batches run, itself included.
    pub(super) fn of_run(&self, running: usize, size: usize) -> Duration {
        let row = &self.rows[running.clamp(1, self.rows.len()) - 1];
        row[size.clamp(1, row.len()) - 1]
    }
}

/// The value at a key: on the line between its neighbours, or that of the nearest.
fn between(points: &BTreeMap<u32, Duration>, at: u32) -> Duration {
    let below = points.range(..=at).next_back();
    let above = points.range(at..).next();
    match (below, above) {
        (Some((low, from)), Some((high, to))) if low < high => {
            let part = f64::from(at - low) / f64::from(high - low);
            let seconds = from.as_secs_f64() + part * (to.as_secs_f64() - from.as_secs_f64());
            Duration::from_secs_f64(seconds)
        }
        (Some((_, value)), _) | (None, Some((_, value))) => *value,
        (None, None) => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_between_measurements_lie_on_lines() {
        let one = |concurrency, batch, ms| Configuration {
            cpus: 4,
            concurrency,
            batch,
            latency: Duration::from_millis(ms),
            private_bytes: 0,
        };
        let mut configurations = vec![one(1, 1, 10), one(1, 4, 40), one(3, 1, 30), one(3, 4, 120)];
        configurations.push(Configuration {
            cpus: 8,
            ..one(1, 1, 1)
        });
        let times = ExecutionTimes::of(&configurations, 4);
        let ms = |running, size| times.of_run(running, size).as_millis();
        assert_eq!([ms(1, 1), ms(1, 2), ms(1, 4), ms(1, 9)], [10, 20, 40, 40]);
        assert_eq!([ms(2, 1), ms(2, 4), ms(3, 3), ms(5, 1)], [20, 80, 90, 30]);
        // A profile without a batch of one.
        let times = ExecutionTimes::of(&[one(1, 2, 7)], 4);
        assert_eq!(times.of_run(1, 1).as_millis(), 7);
    }
}
